//! Demangles function names, which the guest chooses, at a bounded cost.

use std::fmt::{self, Write};

use cpp_demangle::{DemangleOptions, Symbol};

/// Bytes that a demangled name may have. A short mangled name can expand exponentially.
const LONGEST: usize = 1 << 10;

/// The name as Rust or C++ had it before mangling, or the name itself. Escaped, because the guest chooses it.
pub(crate) struct Demangled<'a>(pub(crate) &'a str);

impl fmt::Display for Demangled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Bounded(String::new());
        if let Ok(rust) = rustc_demangle::try_demangle(self.0) {
            // Without the hash. Stops where the bound is reached.
            _ = write!(out, "{rust:#}");
        } else if self.0.starts_with("_Z")
            && let Ok(symbol) = Symbol::new(self.0)
        {
            _ = symbol.structured_demangle(&mut out, &DemangleOptions::new().recursion_limit(64));
        }
        if out.0.is_empty() { self.0.escape_debug().fmt(f) } else { out.0.escape_debug().fmt(f) }
    }
}

/// Text up to the bound. Writing beyond it fails, which stops a demangler.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = LONGEST - self.0.len();
        self.0.push_str(&text[..text.floor_char_boundary(left)]);
        if text.len() > left { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rust_and_cpp_are_shown_as_they_were_written() {
        for (mangled, name) in [
            ("_RNvCsfgHYwM92fyn_7___rustc10rust_panic", "__rustc::rust_panic"),
            ("_ZN4core9panicking5panic17h0123456789abcdefE", "core::panicking::panic"),
            ("_ZN5space3fooEibc", "space::foo(int, bool, char)"),
            ("main", "main"),
            ("", ""),
            ("_Znonsense", "_Znonsense"),
            ("a\nb", "a\\nb"),
        ] {
            assert_eq!(Demangled(mangled).to_string(), name);
        }
    }

    #[test]
    fn hostile_names_cost_no_more_than_their_bound() {
        // Each parameter stands for the two before it.
        let doubling: String =
            "_Z1fSt4pairIiiES_IS0_S0_E".to_owned() + &(1..20).map(|n| format!("S_IS{n}_S{n}_E")).collect::<String>();
        // A back reference to a tuple of back references.
        let mut rust = String::from("_RIC1aTuuE");
        for _ in 0..30 {
            rust.push_str("TB4_B4_E");
        }
        rust.push('E');
        let nested = format!("_Z1f{}i", "P".repeat(400));
        for name in [doubling, rust, nested, "_R".repeat(200), format!("_ZN{}E", "1a".repeat(150))] {
            assert!(Demangled(&name).to_string().len() <= LONGEST.max(name.len()), "{name}");
        }
    }
}
