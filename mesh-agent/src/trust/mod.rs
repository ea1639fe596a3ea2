//! Members that do harm: what bounds it.

pub mod hoard;
