//! Reading a process's options: flag, then environment variable, then TOML file, then default.
//!
//! Each process has a table of [`Opt`]s, from which `--help` is made and by which every source is read. Every mistake is
//! collected and reported at once; a misspelt key in the file is one, an unknown `HEIMDALL_` variable only a warning,
//! since Kubernetes injects `HEIMDALL_PORT` and its like for a Service of that name.

mod arguments;
mod units;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};

use self::arguments::Arguments;
pub use self::units::{parse_bytes, parse_duration};

/// Exit code for a command line or configuration that cannot be used (`EX_USAGE` of sysexits).
pub const EXIT_USAGE: u8 = 64;

/// Options of the environment that belong to neither process alone and are no mistake in either.
const FAMILY: &[&str] = &["HEIMDALL_CONFIG"];

/// What is answered at once, whatever else stands on the command line.
const QUESTIONS: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// One option: `--name` on the command line, `env` in the environment, `name` with underscores in the file.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Name of the flag, without dashes in front.
    pub name: &'static str,
    /// Name of the environment variable.
    pub env: &'static str,
    /// What the value is, with its unit.
    pub value: &'static str,
    /// The value when none is given; empty for none.
    pub default: &'static str,
    /// What it does, for people.
    pub help: &'static str,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake(String);

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

/// What the process was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Run.
    Run,
    /// Read everything, report, exit.
    Check,
}

/// Reads options, one by one, and remembers what is wrong.
#[derive(Debug)]
pub struct Reader {
    options: &'static [Opt],
    flags: BTreeMap<&'static str, String>,
    environment: BTreeMap<String, String>,
    file: Option<(PathBuf, BTreeMap<String, String>)>,
    mistakes: Vec<Mistake>,
    warnings: Vec<String>,
}

impl Reader {
    /// Reads the command line and the environment of this process, and the file that they name. `siblings` are the
    /// options of the other process of the pod, whose variables may be set here too.
    ///
    /// # Errors
    /// The exit code after `--help` or `--version`; what there is to say was printed.
    pub fn from_process(
        name: &'static str,
        about: &'static str,
        options: &'static [Opt],
        siblings: &[&str],
    ) -> Result<(Self, Mode), ExitCode> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        Self::new(command(name, about, options), options, siblings, std::env::args_os(), environment)
    }

    fn new(
        command: Command,
        options: &'static [Opt],
        siblings: &[&str],
        arguments: impl IntoIterator<Item = OsString>,
        environment: BTreeMap<String, String>,
    ) -> Result<(Self, Mode), ExitCode> {
        // No option of ours needs text that is not UTF-8.
        let arguments: Vec<String> =
            arguments.into_iter().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
        if let Some(question) = arguments.iter().find(|argument| QUESTIONS.contains(&argument.as_str())) {
            if let Err(answer) = command.try_get_matches_from(["", question]) {
                // Nothing is left to do when not even this can be printed.
                let _ = answer.print();
            }
            return Err(ExitCode::SUCCESS);
        }
        let Arguments { values: flags, file, check, mistakes } = Arguments::parse(options, arguments);
        let mode = if check { Mode::Check } else { Mode::Run };
        let mut reader = Self { options, flags, environment, file: None, mistakes: Vec::new(), warnings: Vec::new() };
        mistakes.into_iter().for_each(|mistake| reader.wrong(mistake));
        reader.look_for_unknown_variables(siblings);
        if let Some(path) =
            file.or_else(|| reader.environment.get("HEIMDALL_CONFIG").filter(|path| !path.is_empty()).cloned())
        {
            let path = PathBuf::from(path);
            match std::fs::read_to_string(&path) {
                Ok(text) => reader.take_file(&path, &text),
                Err(error) => reader.wrong(format!("cannot read the file {}: {error}", path.display())),
            }
        }
        Ok((reader, mode))
    }

    /// The option's value as text, if it has one from anywhere.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.lookup(name).map(|(value, _)| value)
    }

    /// The option's value, parsed. `None` when it has none or is wrong; the latter is remembered.
    pub fn parsed<T>(&mut self, name: &'static str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.with(name, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// The option's value, parsed by `parse`. `None` when it has none or is wrong; the latter is remembered.
    pub fn with<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, origin) = self.lookup(name)?;
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong(format!("{}: {text:?} {why}", self.place(name, &origin)));
                None
            }
        }
    }

    /// A list separated by commas; empty parts are skipped, each wrong one is remembered.
    pub fn list<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some((text, origin)) = self.lookup(name) else { return Vec::new() };
        let mut values = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match parse(part) {
                Ok(value) => values.push(value),
                Err(why) => self.wrong(format!("{}: {part:?} {why}", self.place(name, &origin))),
            }
        }
        values
    }

    /// A span of time like `25ms`, `1.2s` or `2m`.
    pub fn duration(&mut self, name: &'static str) -> Duration {
        self.with(name, parse_duration).unwrap_or_default()
    }

    /// A number of bytes like `64MiB`.
    pub fn bytes(&mut self, name: &'static str) -> u64 {
        self.with(name, parse_bytes).unwrap_or_default()
    }

    /// A switch: `on`, `off`, `true` or `false`.
    pub fn switch(&mut self, name: &'static str) -> bool {
        let parse = |text: &str| match text {
            "on" | "true" | "yes" => Ok(true),
            "off" | "false" | "no" => Ok(false),
            _ => Err("is neither \"on\" nor \"off\"".to_owned()),
        };
        self.with(name, parse).unwrap_or_default()
    }

    /// Remembers that an option is wrong for a reason that only the caller can know.
    pub fn reject(&mut self, name: &'static str, why: &str) {
        let origin = self.lookup(name).map_or(Origin::Default, |(_, origin)| origin);
        self.wrong(format!("{}: {why}", self.place(name, &origin)));
    }

    /// What is unusual but no mistake.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// `config` if nothing was wrong.
    ///
    /// # Errors
    /// Everything that was wrong.
    pub fn finish<T>(self, config: Option<T>) -> Result<T, Mistakes> {
        match config {
            Some(config) if self.mistakes.is_empty() => Ok(config),
            _ => Err(Mistakes(self.mistakes)),
        }
    }

    fn lookup(&self, name: &'static str) -> Option<(String, Origin)> {
        let option = self.option(name);
        if let Some(value) = self.flags.get(name) {
            return Some((value.clone(), Origin::Flag));
        }
        // An empty variable is how templates say "not set".
        if let Some(value) = self.environment.get(option.env).filter(|value| !value.is_empty()) {
            return Some((value.clone(), Origin::Environment));
        }
        if let Some((path, values)) = &self.file
            && let Some(value) = values.get(&key_of(name))
        {
            return Some((value.clone(), Origin::File(path.clone())));
        }
        (!option.default.is_empty()).then(|| (option.default.to_owned(), Origin::Default))
    }

    fn option(&self, name: &str) -> &'static Opt {
        let found = self.options.iter().find(|option| option.name == name);
        found.expect("an option that is read must be in the table")
    }

    fn place(&self, name: &str, origin: &Origin) -> String {
        let option = self.option(name);
        match origin {
            Origin::Flag => format!("--{name}"),
            Origin::Environment => option.env.to_owned(),
            Origin::File(path) => format!("{} in {}", key_of(name), path.display()),
            Origin::Default => format!("--{name} (or {})", option.env),
        }
    }

    fn wrong(&mut self, what: String) {
        self.mistakes.push(Mistake(what));
    }

    fn take_file(&mut self, path: &Path, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return self.wrong(format!("{} is not TOML: {error}", path.display())),
        };
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let known: Vec<String> = self.options.iter().map(|option| key_of(option.name)).collect();
            if !known.contains(&key) {
                let hint = nearest(&key, &known).map_or_else(String::new, |near| format!("; did you mean {near}?"));
                self.wrong(format!("{key} in {} is no option{hint}", path.display()));
                continue;
            }
            match plain(&value) {
                Some(text) => {
                    values.insert(key, text);
                }
                None => self.wrong(format!("{key} in {} is neither a value nor a list of values", path.display())),
            }
        }
        self.file = Some((path.to_owned(), values));
    }

    fn look_for_unknown_variables(&mut self, siblings: &[&str]) {
        let known = |name: &str| {
            self.options.iter().any(|option| option.env == name) || siblings.contains(&name) || FAMILY.contains(&name)
        };
        let unknown = self.environment.keys().filter(|name| name.starts_with("HEIMDALL_") && !known(name));
        self.warnings = unknown.map(|name| format!("the variable {name} is no option and is ignored")).collect();
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        writeln!(f, "{} {plural} in the configuration:", self.0.len())?;
        for Mistake(what) in &self.0 {
            writeln!(f, "  {what}")?;
        }
        write!(f, "--help lists all options")
    }
}

impl std::error::Error for Mistakes {}

fn command(name: &'static str, about: &'static str, options: &[Opt]) -> Command {
    let flags = options.iter().map(|option| {
        let default = if option.default.is_empty() { String::new() } else { format!(", default {}", option.default) };
        let help = format!("{} [{}{default}]", option.help, option.env);
        Arg::new(option.name).long(option.name).value_name(option.value).help(help)
    });
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("TOML file with options, named as the flags with underscores [HEIMDALL_CONFIG]");
    let check = Arg::new("check")
        .long("check")
        .action(ArgAction::SetTrue)
        .help("Read the whole configuration, report every mistake, and exit");
    Command::new(name)
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .after_help("A flag wins over its environment variable, that one over the file, and the file over the default.")
        .args(flags)
        .args([config, check])
}

fn key_of(name: &str) -> String {
    name.replace('-', "_")
}

/// A value of the file as the text that a flag would have; a list becomes its parts with commas.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Array(parts) => parts.iter().map(plain).collect::<Option<Vec<_>>>().map(|parts| parts.join(",")),
        _ => None,
    }
}

/// The known word that `word` most likely stands for.
fn nearest<'a>(word: &str, known: &'a [String]) -> Option<&'a String> {
    let worth = word.len().div_ceil(3);
    known
        .iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(d, _)| *d <= worth)
        .min()
        .map(|(_, c)| c)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
