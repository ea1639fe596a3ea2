//! Sources as maps and strings: no real environment, no real file.

use super::*;

const OPTIONS: &[Opt] = &[
    Opt { name: "tick", env: "HEIMDALL_TICK", value: "TIME", default: "25ms", help: "Ticks" },
    Opt { name: "store-bytes", env: "HEIMDALL_STORE_BYTES", value: "BYTES", default: "1MiB", help: "Size" },
    Opt { name: "node", env: "POD_NAME", value: "NAME", default: "", help: "Name" },
];

fn reader(arguments: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Reader {
    let arguments = ["test"].iter().chain(arguments).map(OsString::from);
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let command = command("test", "", OPTIONS);
    let (mut reader, _) = Reader::new(command, OPTIONS, &["HEIMDALL_LISTEN"], arguments, environment).unwrap();
    if let Some(text) = file {
        reader.take_file(Path::new("heimdall.toml"), text);
    }
    reader
}

fn mistakes(reader: Reader) -> String {
    reader.finish(Some(())).unwrap_err().to_string()
}

#[test]
fn a_flag_wins_over_the_variable_that_over_the_file_and_the_file_over_the_default() {
    let file = Some("tick = \"4ms\"");
    let tick = |arguments: &[&str], environment: &[(&str, &str)], file| {
        reader(arguments, environment, file).duration("tick").as_millis()
    };
    assert_eq!(tick(&["--tick", "2ms"], &[("HEIMDALL_TICK", "3ms")], file), 2);
    assert_eq!(tick(&[], &[("HEIMDALL_TICK", "3ms")], file), 3);
    assert_eq!(tick(&[], &[("HEIMDALL_TICK", "")], file), 4);
    assert_eq!(tick(&[], &[], None), 25);
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let file = "tik = 5\nstore_bytes = { a = 1 }";
    let mut reader = reader(&["--tick", "soon", "--tack"], &[("HEIMDALL_STORE_BYTES", "many")], Some(file));
    reader.duration("tick");
    reader.bytes("store-bytes");
    let text = mistakes(reader);
    assert!(text.starts_with("5 mistakes"), "{text}");
    assert!(text.contains("--tack is no option; did you mean --tick?"), "{text}");
    assert!(text.contains("tik in heimdall.toml is no option; did you mean tick?"), "{text}");
    assert!(text.contains("store_bytes in heimdall.toml"), "{text}");
    assert!(text.contains("--tick: \"soon\" is not a time"), "{text}");
    assert!(text.contains("HEIMDALL_STORE_BYTES: \"many\" is not a size"), "{text}");
}

#[test]
fn an_unknown_variable_is_a_warning_and_a_sibling_s_is_nothing() {
    let environment = [("HEIMDALL_PORT", "tcp://10.0.0.1:53"), ("HEIMDALL_LISTEN", "x"), ("HEIMDALL_TICK", "1ms")];
    let reader = reader(&[], &environment, None);
    assert_eq!(reader.warnings(), ["the variable HEIMDALL_PORT is no option and is ignored"]);
    assert!(reader.finish(Some(())).is_ok());
}

#[test]
fn lists_and_foreign_names_are_read_from_every_source() {
    let mut from_file = reader(&[], &[], Some("node = [\"a\", \"b\"]"));
    assert_eq!(from_file.list("node", |part| Ok(part.to_owned())), ["a", "b"]);
    let mut from_environment = reader(&[], &[("POD_NAME", "a, b,")], None);
    assert_eq!(from_environment.list("node", |part| Ok(part.to_owned())), ["a", "b"]);
    assert_eq!(reader(&[], &[], None).text("node"), None);
}

#[test]
fn a_file_that_is_not_toml_is_one_mistake() {
    assert!(mistakes(reader(&[], &[], Some("tick = "))).contains("heimdall.toml is not TOML"));
}
