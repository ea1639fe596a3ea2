//! Certificates as files, under the names that a Kubernetes TLS secret has.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::authority::{Ca, CertsError, Leaf};

/// File that holds the certificate.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// File that holds its private key.
pub const KEY_FILE: &str = "tls.key";
/// File that holds the authority's certificate.
pub const CA_FILE: &str = "ca.crt";

/// Mode of a private key: its owner's alone.
const KEY_MODE: u32 = 0o600;
/// Mode of what everybody may read.
const CERTIFICATE_MODE: u32 = 0o644;

impl Leaf {
    /// Writes `ca.crt`, `tls.crt` and `tls.key` into `dir`, which is made when it is missing.
    ///
    /// Each file is replaced whole, so that a reader sees the old or the new one and never half of it. Between two files
    /// a reader can see a key that does not belong to the certificate, and must look again.
    pub fn write_to(&self, dir: impl AsRef<Path>) -> Result<(), CertsError> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|source| CertsError::Write { path: dir.to_owned(), source })?;
        replace(&dir.join(CA_FILE), &self.ca, CERTIFICATE_MODE)?;
        replace(&dir.join(KEY_FILE), &self.key, KEY_MODE)?;
        replace(&dir.join(CERTIFICATE_FILE), &self.certificate, CERTIFICATE_MODE)
    }
}

/// Writes the authority's certificate as `ca.crt` into `dir`, which is made when it is missing.
pub fn write_ca(ca: &Ca, dir: impl AsRef<Path>) -> Result<(), CertsError> {
    let dir = dir.as_ref();
    fs::create_dir_all(dir).map_err(|source| CertsError::Write { path: dir.to_owned(), source })?;
    replace(&dir.join(CA_FILE), &ca.certificate(), CERTIFICATE_MODE)
}

fn replace(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(new)?;
        // The mode above counts only when the file is created, and the umask cuts it.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        fs::rename(new, path)
    };
    write().map_err(|source| {
        // A half-written file with a key in it is nobody's gain; the first error is the one to report.
        let _ = fs::remove_file(new);
        CertsError::Write { path: path.to_owned(), source }
    })
}
