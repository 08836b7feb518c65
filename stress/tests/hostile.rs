//! The hostile guests, as an ordinary test; and that the suite would notice if any one limit were not there.

use std::path::Path;

use airssys_wasm_stress::hostile::{corpus::Corpus, suite::try_guest};

const PROGRAM: &str = env!("CARGO_BIN_EXE_stress");

#[test]
fn each_guest_ends_as_it_must_and_harms_nobody() {
    for guest in Corpus::read().unwrap().guests.into_iter().filter(|guest| !guest.slow) {
        let verdict = try_guest(Path::new(PROGRAM), &guest, None).unwrap();
        assert!(verdict.complaints.is_empty(), "{}: {:#?}", guest.name, verdict);
    }
}

#[test]
fn with_any_one_limit_switched_off_the_guests_aimed_at_it_are_found_out() {
    for guest in Corpus::read().unwrap().guests {
        for limit in &guest.aims_at {
            let verdict = try_guest(Path::new(PROGRAM), &guest, Some(limit)).unwrap();
            assert!(!verdict.complaints.is_empty(), "{} without {limit}: {:#?}", guest.name, verdict.report);
        }
    }
}
