//! SQL literals and identifiers that can be put into a statement. Pure.

/// A string as an SQL literal that means the same in every `sql_mode`.
///
/// Quotes are doubled, which every mode understands (also `ANSI_QUOTES` and `NO_BACKSLASH_ESCAPES`). A backslash has two
/// meanings, depending on the mode, and control characters break an init file's one statement a line: a string with either
/// is written in hexadecimal with its character set, `_utf8mb4 X'5C'` (verified on MariaDB 10.11.19 in both modes). That
/// form is an expression; where the grammar wants a plain string, as after `IDENTIFIED BY`, keep backslashes out.
pub fn quote_string(s: &str) -> String {
    if s.chars().any(|c| c == '\\' || c.is_control()) {
        let hex: String = s.bytes().map(|byte| format!("{byte:02X}")).collect();
        return format!("_utf8mb4 X'{hex}'");
    }
    format!("'{}'", s.replace('\'', "''"))
}

/// An identifier in backticks, which every `sql_mode` understands.
pub fn quote_identifier(s: &str) -> String {
    format!("`{}`", s.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_are_doubled_and_backslashes_in_hex() {
        assert_eq!(quote_string("it's"), "'it''s'");
        assert_eq!(quote_string(r"a\b"), "_utf8mb4 X'615C62'");
        assert_eq!(quote_string("a\nb"), "_utf8mb4 X'610A62'");
        assert_eq!(quote_string("\"é\""), "'\"é\"'");
        assert_eq!(quote_string(""), "''");
        assert_eq!(quote_identifier("a`b"), "`a``b`");
    }

    proptest! {
        /// Reads a literal as a server without backslash escapes does, and one with them: both must get the string back.
        #[test]
        fn a_literal_ends_where_it_should(s in any::<String>()) {
            let literal = quote_string(&s);
            if let Some(hex) = literal.strip_prefix("_utf8mb4 X'") {
                let hex = hex.strip_suffix('\'').unwrap();
                let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
                prop_assert_eq!(bytes, s.as_bytes());
            } else {
                let inner = &literal[1..literal.len() - 1];
                prop_assert!(!inner.contains('\\') && !inner.replace("''", "").contains('\''));
                prop_assert_eq!(inner.replace("''", "'"), s);
            }
        }

        #[test]
        fn an_identifier_ends_where_it_should(s in any::<String>()) {
            let quoted = quote_identifier(&s);
            let inner = &quoted[1..quoted.len() - 1];
            prop_assert!(!inner.replace("``", "").contains('`'));
            prop_assert_eq!(inner.replace("``", "`"), s);
        }
    }
}
