//! The command line, read to its end whatever is wrong with it: a parser that stops at the first mistake hides the others.

use std::collections::BTreeMap;

use super::{Opt, nearest};

/// What the command line says.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// Values by the option's name.
    pub(super) values: BTreeMap<&'static str, String>,
    /// The file that `--config` names.
    pub(super) file: Option<String>,
    /// Whether `--check` is there.
    pub(super) check: bool,
    /// What cannot be understood.
    pub(super) mistakes: Vec<String>,
}

impl Arguments {
    /// Reads what follows the program's name: `--name value` or `--name=value`.
    pub(super) fn parse(options: &'static [Opt], arguments: impl IntoIterator<Item = String>) -> Self {
        let mut parsed = Self::default();
        let mut rest = arguments.into_iter().peekable();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix("--") else {
                parsed.mistakes.push(format!("{argument:?} is no option; options begin with two dashes"));
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None if flag == "check" => (flag, None),
                // What follows belongs to an unknown flag too, or it would be reported as a mistake of its own.
                None => (flag, rest.next_if(|next| !next.starts_with("--"))),
            };
            parsed.take(options, name, value);
        }
        parsed
    }

    fn take(&mut self, options: &'static [Opt], name: &str, value: Option<String>) {
        let option = options.iter().find(|option| option.name == name);
        let said_before = match (option, name, value) {
            (None, "check", None) => {
                self.check = true;
                false
            }
            (None, "check", Some(_)) => return self.mistakes.push("--check takes no value".to_owned()),
            (None, "config", Some(value)) => self.file.replace(value).is_some(),
            (Some(option), _, Some(value)) => self.values.insert(option.name, value).is_some(),
            (Some(_), _, None) | (None, "config", None) => {
                return self.mistakes.push(format!("--{name} needs a value"));
            }
            (None, _, _) => {
                let known: Vec<String> = options.iter().map(|option| option.name.to_owned()).collect();
                let hint = nearest(name, &known).map_or_else(String::new, |near| format!("; did you mean --{near}?"));
                return self.mistakes.push(format!("--{name} is no option{hint}"));
            }
        };
        if said_before {
            self.mistakes.push(format!("--{name} is given twice; the values of a list are separated by commas"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &[Opt] = &[
        Opt { name: "tick", env: "HEIMDALL_TICK", value: "TIME", default: "", help: "" },
        Opt { name: "listen", env: "HEIMDALL_LISTEN", value: "ADDR", default: "", help: "" },
    ];

    fn parse(line: &str) -> Arguments {
        Arguments::parse(OPTIONS, line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn both_spellings_of_a_value_are_read() {
        let parsed = parse("--tick 1ms --check --listen=[::1]:53 --config f.toml");
        assert_eq!(parsed.values, BTreeMap::from([("tick", "1ms".to_owned()), ("listen", "[::1]:53".to_owned())]));
        assert_eq!((parsed.file.as_deref(), parsed.check), (Some("f.toml"), true));
        assert_eq!(parsed.mistakes, Vec::<String>::new());
    }

    #[test]
    fn every_mistake_of_a_line_is_found() {
        let parsed = parse("run --tack 1ms --tick --listen a --listen b --check=yes --config");
        assert_eq!(
            parsed.mistakes,
            [
                "\"run\" is no option; options begin with two dashes",
                "--tack is no option; did you mean --tick?",
                "--tick needs a value",
                "--listen is given twice; the values of a list are separated by commas",
                "--check takes no value",
                "--config needs a value",
            ]
        );
    }
}
