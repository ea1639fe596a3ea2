//! Which candidates are measured.

use anyhow::{Result, bail, ensure};

use super::super::peers::{PEERS, Peer};
use super::super::report::Role;
use super::command::Custom;

/// The name of the limit, to which all others are compared.
pub(in crate::bench) const ECHO: &str = "echo";

/// Heimdall without an agent.
const DNS: &str = "heimdall-dns";

/// A replica of a cluster of three.
const PODS: &str = "heimdall-pods";

/// A candidate that somebody wants measured.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Choice {
    pub(in crate::bench) name: String,
    pub(in crate::bench) kind: Kind,
}

/// What is started for a candidate.
#[derive(Clone, Debug)]
pub(in crate::bench) enum Kind {
    /// The bare limit of the kernel.
    Echo,
    /// `heimdall-dns` without an agent.
    Dns,
    /// Replicas with agents.
    Pods,
    /// Another server with settings that are known here.
    Peer(&'static Peer),
    /// A command line of the user's.
    Custom(Custom),
}

impl Kind {
    /// What it is to the other candidates.
    pub(in crate::bench) fn role(&self) -> Role {
        match self {
            Self::Echo => Role::Limit,
            Self::Dns | Self::Pods => Role::Ours,
            Self::Peer(_) => Role::Peer,
            Self::Custom(_) => Role::Other,
        }
    }
}

/// The candidates that the options leave, the limit first.
///
/// # Errors
/// A name that is not known or that two candidates have, or nothing to compare with.
pub(in crate::bench) fn choose(only: &[String], without: &[String], customs: &[Custom]) -> Result<Vec<Choice>> {
    let mut all: Vec<Choice> = [(ECHO, Kind::Echo), (DNS, Kind::Dns), (PODS, Kind::Pods)]
        .into_iter()
        .chain(PEERS.iter().map(|peer| (peer.name, Kind::Peer(peer))))
        .map(|(name, kind)| Choice { name: name.to_owned(), kind })
        .collect();
    for custom in customs {
        ensure!(
            all.iter().all(|choice| choice.name != custom.name),
            "--candidate {}=…: there is a candidate of this name; choose another one",
            custom.name
        );
        all.push(Choice { name: custom.name.clone(), kind: Kind::Custom(custom.clone()) });
    }
    for (option, names) in [("--only", only), ("--without", without)] {
        if let Some(unknown) = names.iter().find(|name| all.iter().all(|choice| choice.name != **name)) {
            let known: Vec<&str> = all.iter().map(|choice| choice.name.as_str()).collect();
            bail!("{option} {unknown}: there is no such candidate, but {}", known.join(", "));
        }
    }
    ensure!(!without.iter().any(|name| name == ECHO), "--without {ECHO}: there would be nothing to compare with");
    // The limit is measured whether it is named or not.
    all.retain(|choice| {
        let named = only.is_empty() || choice.name == ECHO || only.contains(&choice.name);
        named && !without.contains(&choice.name)
    });
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(only: &[&str], without: &[&str], customs: &[&str]) -> Result<Vec<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let customs: Vec<Custom> = customs.iter().map(|custom| custom.parse().unwrap()).collect();
        let chosen = choose(&owned(only), &owned(without), &customs)?;
        Ok(chosen.into_iter().map(|choice| choice.name).collect())
    }

    #[test]
    fn all_are_measured_unless_the_options_say_otherwise() {
        let all = names(&[], &[], &["mine=serve {listen}"]).unwrap();
        assert_eq!(all[..3], [ECHO, DNS, PODS]);
        assert_eq!(all[3..all.len() - 1], PEERS.each_ref().map(|peer| peer.name));
        assert_eq!(all.last().unwrap(), "mine");
        assert_eq!(names(&["mine", "unbound"], &[], &["mine=serve {listen}"]).unwrap(), [ECHO, "unbound", "mine"]);
        assert_eq!(names(&[DNS, PODS], &[PODS], &[]).unwrap(), [ECHO, DNS]);
        assert!(!names(&[], &["unbound"], &[]).unwrap().contains(&"unbound".to_owned()));
    }

    #[test]
    fn a_name_that_is_not_known_is_an_error_that_lists_those_that_are() {
        for (only, without) in [(vec!["unbond"], vec![]), (vec![], vec!["unbond"])] {
            let error = names(&only, &without, &["mine=serve {listen}"]).unwrap_err().to_string();
            for known in ["unbond", ECHO, DNS, PODS, "unbound", "mine"] {
                assert!(error.contains(known), "{known}: {error}");
            }
        }
        assert!(names(&[], &[ECHO], &[]).is_err());
    }

    #[test]
    fn two_candidates_cannot_have_one_name() {
        assert!(names(&[], &[], &["unbound=serve {listen}"]).is_err());
        assert!(names(&[], &[], &["mine=serve {listen}", "mine=other {listen}"]).is_err());
    }
}
