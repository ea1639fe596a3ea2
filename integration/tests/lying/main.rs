//! A member that lies, or is of another release: it has a certificate, and the test decides its every word.

#![allow(clippy::unwrap_used)]

mod health;
mod hoards;
mod liar;
mod lies;
mod octets;
mod older;
mod scene;
mod together;
mod versions;
mod writes;
