//! What the command and the library write, read back.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use heimdall_certs::{Ca, CertsError, Validity};

fn run(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heimdall-certs")).arg("--dir").arg(dir).args(arguments).output().unwrap()
}

#[test]
fn the_command_makes_a_folder_for_each_name_with_a_key_that_only_its_owner_reads() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["--replica", "a", "--replica", "b", "--operator", "alice", "--days", "2"]);
    assert!(output.status.success(), "{output:?}");
    let ca = fs::read_to_string(dir.path().join("ca.crt")).unwrap();
    for name in ["a", "b", "alice"] {
        let folder = dir.path().join(name);
        assert_eq!(fs::read_to_string(folder.join("ca.crt")).unwrap(), ca);
        assert!(fs::read_to_string(folder.join("tls.crt")).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(fs::read_to_string(folder.join("tls.key")).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(fs::metadata(folder.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "no half-written file may stay in {name}");
    }
}

#[test]
fn the_command_overwrites_only_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), &["--replica", "a"]).status.success());
    let before = fs::read_to_string(dir.path().join("a/tls.crt")).unwrap();

    let refused = run(dir.path(), &["--replica", "a"]);
    assert!(!refused.status.success());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("ca.crt exists") && message.contains("--force"), "{message}");
    assert_eq!(fs::read_to_string(dir.path().join("a/tls.crt")).unwrap(), before);

    assert!(run(dir.path(), &["--replica", "a", "--force"]).status.success());
    assert_ne!(fs::read_to_string(dir.path().join("a/tls.crt")).unwrap(), before);
}

#[test]
fn a_bad_name_writes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("certs");
    for arguments in [
        &["--replica", "good", "--replica", "../evil"][..],
        &["--replica", ".."],
        &["--replica", ""],
        &["--replica", "a", "--operator", "a"],
        &["--replica", "a", "--trust-domain", "Not A Domain"],
        &[],
    ] {
        let output = run(&dir, arguments);
        assert!(!output.status.success(), "{arguments:?} was accepted");
        assert!(!dir.exists(), "{arguments:?} left files behind");
    }
}

#[test]
fn names_that_cannot_stand_in_an_identity_are_refused() {
    let ca = Ca::new("heimdall.local").unwrap();
    for name in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(254)] {
        assert!(matches!(ca.replica(name), Err(CertsError::Name { .. })), "{name:?}");
        assert!(matches!(ca.operator(name), Err(CertsError::Name { .. })), "{name:?}");
    }
    for domain in ["", "UPPER", "a/b", "a:1", &"x".repeat(256)] {
        assert!(matches!(Ca::new(domain), Err(CertsError::TrustDomain { .. })), "{domain:?}");
    }
}

#[test]
fn a_replica_has_one_uri_and_the_names_that_tools_check() {
    let der = der(&Ca::new("mesh.test").unwrap().replica("heimdall-0").unwrap().certificate);
    let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
    assert_eq!(certificate.valid_uri_names().collect::<Vec<_>>(), ["spiffe://mesh.test/replica/heimdall-0"]);
    assert_eq!(certificate.valid_dns_names().collect::<Vec<_>>(), ["localhost", "heimdall-0", "heimdall-peer"]);
}

#[test]
fn an_operator_has_one_uri_and_no_other_name() {
    let der = der(&Ca::new("mesh.test").unwrap().operator("alice").unwrap().certificate);
    let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
    assert_eq!(certificate.valid_uri_names().collect::<Vec<_>>(), ["spiffe://mesh.test/operator/alice"]);
    assert_eq!(certificate.valid_dns_names().count(), 0);
}

#[test]
fn a_time_that_a_certificate_cannot_express_is_an_error() {
    let mut validity = Validity::days(1);
    validity.not_after += std::time::Duration::from_secs(400_000_000_000);
    assert!(matches!(Ca::valid("heimdall.local", validity), Err(CertsError::Validity { .. })));
}

fn der(pem: &str) -> rustls::pki_types::CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}
