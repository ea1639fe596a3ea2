//! The contract between Heimdall's processes, generated from `heimdall/coordination/v1/*.proto`. Nothing here is written
//! by hand but the envelope of the data path, [`v1::SessionBatch`], which stays in its wire form; `heimdall_shared::wire` turns
//! these types into the ones that the rest of the code uses.

// Generated code is documented where the .proto files are, and lints are for code that people write.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, rustdoc::all)]
#![allow(clippy::use_self, clippy::needless_pass_by_value)]

mod batch;
mod codec;

/// Package `heimdall.coordination.v1`.
pub mod v1 {
    pub use crate::batch::SessionBatch;

    tonic::include_proto!("heimdall.coordination.v1");

    /// The encoded descriptor set of the package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("heimdall_descriptor");
}
