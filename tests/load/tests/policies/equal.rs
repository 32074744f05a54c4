//! Invariant 3: the native default ruling and the bundled policy's are the same, on a million
//! random signals.

use std::cell::RefCell;

use coroner_core::legality::legal;
use coroner_core::native_default::default_ruling;
use coroner_core::ruling::Ruling;
use coroner_testkit::random;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::dropped;

/// Signals in the gate; `CORONER_SIGNALS` sets another number.
const SIGNALS: u32 = 1_000_000;

#[test]
fn native_and_wasm_rulings_are_equal() {
    let signals = std::env::var("CORONER_SIGNALS").map_or(SIGNALS, |it| it.parse().unwrap());
    let chain = RefCell::new(dropped(&[]).chain());
    let acted = RefCell::new(0_u32);
    let mut runner =
        TestRunner::new(Config { cases: signals, failure_persistence: None, ..Config::default() });
    runner
        .run(&(random::signal(), random::case()), |(signal, case)| {
            let native = default_ruling(&signal, &case);
            let outcome = chain.borrow_mut().rule(&signal, &case);
            prop_assert_eq!(outcome.opinions.len(), 1);
            prop_assert_eq!(&outcome.opinions[0].ruling, &Some(Ruling::Decide(native.clone())));
            prop_assert_eq!(&outcome.actions, &native.actions);
            // The law holds for the default: nothing it rules is ever replaced.
            prop_assert_eq!(legal(&signal, &case, &native.actions), Ok(()));
            *acted.borrow_mut() += u32::from(!native.actions.is_empty());
            Ok(())
        })
        .unwrap();
    let acted = acted.into_inner();
    println!("{signals} signals ruled alike, {acted} of them with an action");
    // A generator that only made signals without an action would prove nothing.
    assert!(acted > signals / 10);
}

#[test]
fn legality_check_passes_no_illegal_draft() {
    let mut runner =
        TestRunner::new(Config { cases: 100_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&(random::signal(), random::case(), random::actions()), |(signal, case, actions)| {
            use coroner_core::mode::Known;
            use coroner_core::ruling::Action;
            use coroner_core::signal::Event;
            let exits = actions.iter().filter(|it| matches!(it, Action::TaskExit(_))).count();
            let ends = matches!(signal.event, Event::Exited(_) | Event::GuestLost(_));
            let due = ends && case.knows(Known::ExitWritable);
            if legal(&signal, &case, &actions).is_ok() {
                prop_assert_eq!(exits, usize::from(due));
                prop_assert!(actions.iter().filter(|it| matches!(it, Action::TaskOom)).count() <= 1);
                prop_assert!(!matches!(actions.as_slice(), [Action::TaskExit(_), Action::TaskOom]));
            }
            Ok(())
        })
        .unwrap();
}
