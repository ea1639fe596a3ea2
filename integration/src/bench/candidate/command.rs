//! A candidate that the user describes: `NAME=COMMAND`, with placeholders for what the benchmark decides.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail, ensure};

use super::super::peers::Place;
use crate::process::Process;

/// The shell that runs the command.
const SHELL: &str = "/bin/sh";

/// What stands for what.
const PLACEHOLDERS: [&str; 7] = ["listen", "host", "port", "upstream", "upstream_host", "upstream_port", "folder"];

/// A name and a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custom {
    /// The candidate's name.
    pub name: String,
    /// A command for the shell, with placeholders.
    pub command: String,
}

impl FromStr for Custom {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, command) = text.split_once('=').ok_or_else(|| anyhow!("it must be NAME=COMMAND"))?;
        let letters = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        // It names a folder.
        ensure!(
            !name.is_empty() && letters(name) && !name.starts_with('.'),
            "the name {name:?} before the = must be made of letters, digits, - and _"
        );
        let mut used = Vec::new();
        fill(command, |placeholder| {
            used.push(placeholder.to_owned());
            PLACEHOLDERS.contains(&placeholder).then(String::new)
        })?;
        ensure!(
            used.iter().any(|placeholder| placeholder == "listen" || placeholder == "port"),
            "the command says neither {{listen}} nor {{port}}, so the server could not know where it is asked"
        );
        Ok(Self { name: name.to_owned(), command: command.to_owned() })
    }
}

impl Custom {
    /// Starts the command in its folder.
    ///
    /// # Errors
    /// There is no shell.
    pub(super) fn start(&self, place: &Place) -> Result<Process> {
        let command = self.filled(place)?;
        let arguments = ["-c".to_owned(), command];
        Process::start(&self.name, Path::new(SHELL), &arguments, &[], &place.folder.join("output"))
    }

    fn filled(&self, place: &Place) -> Result<String> {
        fill(&self.command, |placeholder| {
            Some(match placeholder {
                "listen" => place.listen.to_string(),
                "host" => place.listen.ip().to_string(),
                "port" => place.listen.port().to_string(),
                "upstream" => place.upstream.to_string(),
                "upstream_host" => place.upstream.ip().to_string(),
                "upstream_port" => place.upstream.port().to_string(),
                "folder" => place.folder.display().to_string(),
                _ => return None,
            })
        })
    }
}

/// The text with its placeholders replaced. A brace that is not followed by a word and its closing brace is a brace.
fn fill(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> Result<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        filled.push_str(before);
        let word = behind
            .split_once('}')
            .filter(|(word, _)| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        rest = match word {
            Some((word, behind)) => {
                let Some(value) = value(word) else {
                    let known = PLACEHOLDERS.map(|placeholder| format!("{{{placeholder}}}")).join(", ");
                    bail!("the placeholder {{{word}}} is not known; there are {known}");
                };
                filled.push_str(&value);
                behind
            }
            None => {
                filled.push('{');
                behind
            }
        };
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            listen: "127.0.0.1:5301".parse().unwrap(),
            upstream: "127.0.0.2:53".parse().unwrap(),
            folder: "/tmp/b/mine".into(),
        }
    }

    #[test]
    fn placeholders_are_replaced_and_other_braces_stay() {
        let text = "mine=a -l {listen} -h {host} -p {port} -u {upstream} {upstream_host}#{upstream_port} > {folder}/c \
                    '. { forward }' ${HOME} {}";
        let custom: Custom = text.parse().unwrap();
        assert_eq!(custom.name, "mine");
        assert_eq!(
            custom.filled(&place()).unwrap(),
            "a -l 127.0.0.1:5301 -h 127.0.0.1 -p 5301 -u 127.0.0.2:53 127.0.0.2#53 > /tmp/b/mine/c '. { forward }' \
             ${HOME} {}"
        );
        // Everything behind the first = is the command's.
        let custom: Custom = "mine=env A=b c {port}".parse().unwrap();
        assert_eq!(custom.filled(&place()).unwrap(), "env A=b c 5301");
    }

    #[test]
    fn wrong_use_is_told() {
        for (text, told) in [
            ("coredns", "NAME=COMMAND"),
            ("=coredns {port}", "\"\""),
            ("../x=coredns {port}", "\"../x\""),
            ("a b=coredns {port}", "\"a b\""),
            ("mine=coredns -p 53", "{listen}"),
            ("mine=coredns -p {ports}", "{ports}"),
            ("mine=coredns -p {port} -c {dir}", "{folder}"),
        ] {
            let error = text.parse::<Custom>().unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
