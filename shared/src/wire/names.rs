//! Names of members, read from octets. Each token names its granter and there are few of those: a name that was read lately is the
//! same string again, and no new one.

use std::cell::RefCell;
use std::sync::Arc;

use super::member_name;

/// Names that a thread keeps, in places that their ends choose: those of a cluster mostly differ there.
const KEPT: usize = 64;

thread_local! {
    static NAMES: RefCell<[Option<Arc<str>>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

/// The name of these octets. `None` when it is none, or too long.
pub(super) fn read(octets: &[u8]) -> Option<Arc<str>> {
    let end = octets.iter().rev().take(2).fold(0, |end, &octet| end * 11 + usize::from(octet));
    NAMES.with_borrow_mut(|names| {
        let kept = &mut names[end % KEPT];
        match kept {
            Some(name) if name.as_bytes() == octets => Some(Arc::clone(name)),
            _ => {
                let name = member_name(std::str::from_utf8(octets).ok()?).ok()?;
                Some(Arc::clone(kept.insert(name)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::MEMBER_NAME_MAX;
    use super::*;

    #[test]
    fn a_name_that_is_read_again_is_the_same_string() {
        let first = read(b"replica-1").unwrap();
        assert!(Arc::ptr_eq(&first, &read(b"replica-1").unwrap()));
        // Of the same end, and so in its place.
        assert_eq!(&*read(b"other-1").unwrap(), "other-1");
        assert_eq!(read(b"replica-1"), Some(first));
        let many: Vec<_> = (0..1_000).map(|nth| format!("replica-{nth}")).collect();
        for name in many.iter().chain(&many) {
            assert_eq!(read(name.as_bytes()).as_deref(), Some(&**name));
        }
    }

    #[test]
    fn what_is_no_name_is_refused_and_takes_no_place() {
        let known = read(b"x").unwrap();
        for wrong in [&b""[..], b"\xff\xffx", &[b'x'; MEMBER_NAME_MAX + 1]] {
            assert_eq!(read(wrong), None);
        }
        assert!(Arc::ptr_eq(&known, &read(b"x").unwrap()));
    }
}
