//! The grants in an agent's log, and what must hold for them.

use std::collections::{BTreeSet, HashMap};

/// The option that makes agents log their grants.
pub const LOG: (&str, &str) = ("--log", "info,leases=debug");

/// Judges the log of one agent, over all its incarnations: gives how many leases it granted, and what was wrong.
///
/// # Errors
/// V5: more than two leases for a key at a time, or two on one replica. V7: a token that was not larger than the ones before.
pub fn check(log: &str) -> Result<usize, Vec<String>> {
    let mut newest: HashMap<&str, u64> = HashMap::new();
    let mut wrong = Vec::new();
    let mut grants = 0;
    for line in log.lines().filter(|line| line.contains(" granted ")) {
        let field = |name: &str| {
            let rest = &line[line.find(&format!(" {name}="))? + name.len() + 2..];
            Some(rest.split(' ').next().unwrap_or(rest).trim_matches('"'))
        };
        let (Some(token), Some(holders)) = (field("token"), field("holders")) else { continue };
        let Some((incarnation, counter)) = token.rsplit_once('/') else { continue };
        let Ok(counter) = counter.parse::<u64>() else { continue };
        grants += 1;
        let holders: Vec<&str> = holders.split(',').collect();
        let different: BTreeSet<&str> = holders.iter().copied().collect();
        if holders.len() > 2 || different.len() < holders.len() {
            wrong.push(format!("V5 {line}"));
        }
        if newest.insert(incarnation, counter).is_some_and(|before| before >= counter) {
            wrong.push(format!("V7 {line}"));
        }
    }
    if wrong.is_empty() { Ok(grants) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(token: &str, holders: &str) -> String {
        format!("2026-01-01T00:00:00Z DEBUG granted key=a. A token={token} holders=\"{holders}\"\n")
    }

    #[test]
    fn rising_tokens_of_one_or_two_holders_are_right() {
        let log = line("a/1/1", "a") + &line("a/1/2", "a,b") + &line("a/2/1", "c") + "INFO members changed\n";
        assert_eq!(check(&log), Ok(3));
    }

    #[test]
    fn a_token_that_comes_again_and_holders_that_are_too_many_are_found() {
        assert!(check(&(line("a/1/2", "a") + &line("a/1/2", "a"))).unwrap_err()[0].starts_with("V7"));
        for holders in ["a,a", "a,b,c"] {
            assert!(check(&line("a/1/2", holders)).unwrap_err()[0].starts_with("V5"));
        }
    }
}
