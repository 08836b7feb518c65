//! Names as NATS can have them.

/// Any text as one token of a subject, which a key of a bucket is made of: letters, digits, `-` and `_` stand for
/// themselves, every other byte is `=XX`, and no text at all is `=`.
pub(crate) fn key(text: &str) -> String {
    if text.is_empty() {
        return "=".to_owned();
    }
    let mut key = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            key.push(char::from(byte));
        } else {
            key.push_str(&format!("={byte:02X}"));
        }
    }
    key
}

/// The text that [`key`] was made of; `None` if it was made of none.
pub(crate) fn text(key: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&first, after)) = rest.split_first().filter(|_| key != "=") {
        rest = after;
        if first == b'=' {
            let (digits, after) = rest.split_at_checked(2)?;
            rest = after;
            bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
        } else {
            bytes.push(first);
        }
    }
    // One text has one key.
    String::from_utf8(bytes).ok().filter(|text| self::key(text) == key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_what_they_stand_for() {
        for (text, key) in [
            ("cart", "cart"),
            ("cart/4711", "cart=2F4711"),
            ("a-b_c.d:e@f", "a-b_c=2Ed=3Ae=40f"),
            ("", "="),
            ("=", "=3D"),
            ("*.>", "=2A=2E=3E"),
            ("ä", "=C3=A4"),
        ] {
            assert_eq!(self::key(text), key);
            assert_eq!(self::text(key).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_key_has_no_text() {
        for key in ["", "==", "=2", "=2f", "=41", "a.b", "ä", "=ZZ", "=+1", "=C3", "a=", "=\u{e4}", "\u{20ac}"] {
            assert_eq!(text(key), None, "{key}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_key_of_its_own(text in any::<String>()) {
            let key = key(&text);
            prop_assert!(!key.is_empty());
            prop_assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=')));
            prop_assert_eq!(self::text(&key), Some(text));
        }

        #[test]
        fn any_key_is_read_or_refused(key in any::<String>()) {
            if let Some(text) = text(&key) {
                prop_assert_eq!(self::key(&text), key);
            }
        }
    }
}
