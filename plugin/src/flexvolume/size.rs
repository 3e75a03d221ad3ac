//! Sizes as people write them in manifests.

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a size, expected GiB as a plain number (100), or a quantity (100Gi, 1.5Ti, 500G)"
)]
pub struct SizeError(pub String);

/// Most digits after the point that are taken.
const FRACTION_DIGITS_MAX: usize = 9;
const GIB: u128 = 1 << 30;

/// A size in bytes: GiB for a plain number, as in the manifests of 2016, else a quantity of Kubernetes with its suffix.
/// Rounded up to whole bytes; at least 1.
///
/// # Errors
/// [`SizeError`].
pub fn parse(text: &str) -> Result<u64, SizeError> {
    number(text)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| SizeError(text.to_owned()))
}

fn number(text: &str) -> Option<u128> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit: u128 = match suffix {
        "" | "Gi" => GIB,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > FRACTION_DIGITS_MAX || number.ends_with('.') {
        return None;
    }
    let whole = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    let part = match fraction {
        "" => 0,
        digits => {
            let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
            (digits.parse::<u128>().ok()? * unit).div_ceil(scale)
        }
    };
    whole.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("100", 100 << 30),
            ("1", 1 << 30),
            ("100Gi", 100 << 30),
            ("0.5", 1 << 29),
            ("1.5Ti", 3 << 39),
            ("500G", 500_000_000_000),
            ("2048Mi", 2 << 30),
            ("0.000000001k", 1),
            ("16383Pi", 16383 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "0Gi",
            "-1",
            "+1",
            "1e3",
            "1 Gi",
            "Gi",
            ".5",
            "5.",
            "1.2.3",
            "1gi",
            "1GiB",
            "١",
            "16Ei",
            "99999999999999999999999999999999999999999",
            "1.1234567890",
        ] {
            assert_eq!(parse(text), Err(SizeError(text.into())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn gib_are_gib(gib in 1_u64..=16_u64 << 20) {
            prop_assert_eq!(parse(&gib.to_string()), Ok(gib << 30));
        }
    }
}
