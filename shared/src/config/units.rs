//! Values with units.

use std::time::Duration;

/// Reads `25ms`, `1.2s`, `2m`, `1h`; a bare number has no unit and is refused.
///
/// # Errors
/// How it should be written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("is not a time like 25ms, 1.2s or 2m".to_owned()),
    };
    let seconds = number.parse::<f64>().map_err(|_| "does not begin with a number".to_owned())? * scale;
    Duration::try_from_secs_f64(seconds).map_err(|_| "is out of range".to_owned())
}

/// Reads `64MiB`, `1GiB`, `500kB` or a bare number of bytes.
///
/// # Errors
/// How it should be written.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("is not a size like 64MiB or 1GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "does not begin with a whole number".to_owned())?;
    number.checked_mul(scale).ok_or_else(|| "is out of range".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("25ms"), Ok(Duration::from_millis(25)));
        assert_eq!(parse_duration("1.2s"), Ok(Duration::from_millis(1_200)));
        assert_eq!(parse_duration("2 m"), Ok(Duration::from_secs(120)));
        for text in ["", "5", "ms", "5 fortnights", "-5s", "1e99h"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_whole_numbers_of_bytes() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("1000"), Ok(1_000));
        for text in ["", "MiB", "1.5GiB", "99999999999GiB", "1TB"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }
}
