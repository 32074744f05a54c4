//! What makes a component of a policy: the macro, and the functions it calls.

use std::sync::OnceLock;

use crate::{Action, CaseFile, Description, Mistakes, Policy, Ruling, Signal, log};

/// Makes a type that implements [`Policy`](crate::Policy) the component's policy. Once per crate.
///
/// Its version is that of its package, unless given: `export_policy!(Mine, version = "1.2.3")`.
/// When it panics, the panic's text and place go to the router's log. Off wasm this does nothing.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        $crate::export_policy!($policy, version = env!("CARGO_PKG_VERSION"));
    };
    ($policy:ty, version = $version:expr) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::{__private as coroner, bindings::exports::coroner::policy::rules::Guest};

            static POLICY: ::std::sync::OnceLock<$policy> = ::std::sync::OnceLock::new();

            struct Component;

            impl Guest for Component {
                fn describe() -> $crate::Description {
                    coroner::log_panics();
                    coroner::describe::<$policy>($version)
                }

                fn configure(json: ::std::string::String) -> ::std::result::Result<(), $crate::Mistakes> {
                    coroner::configure(&POLICY, &json)
                }

                fn rule(
                    signal: $crate::Signal,
                    case: $crate::CaseFile,
                    draft: ::std::vec::Vec<$crate::Action>,
                ) -> ::std::result::Result<$crate::Ruling, ::std::string::String> {
                    coroner::rule(&POLICY, &signal, &case, &draft)
                }
            }

    $crate::bindings::export!(Component with_types_in $crate::bindings);
        };
    };
}

/// wasm32-unknown-unknown has no standard error: without this a panic is a bare trap.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log::error(panic.to_string())));
}

/// The first call of an instance.
pub fn describe<P: Policy>(version: &str) -> Description {
    Description {
        name: P::NAME.to_owned(),
        version: version.to_owned(),
        wants: P::wants().names(),
        needs: P::needs().iter_names().map(|(name, _)| contract_name(name)).collect(),
        config_schema: P::config_schema(),
    }
}

/// The contract's name of a fact: `KILL_COUNT` is `kill-count`.
fn contract_name(flag: &str) -> String {
    flag.to_ascii_lowercase().replace('_', "-")
}

/// The second, once.
pub fn configure<P: Policy>(policy: &OnceLock<P>, json: &str) -> Result<(), Mistakes> {
    policy.set(P::configure(json)?).map_err(|_| vec![(String::new(), "configured twice".to_owned())])
}

/// Each signal after that.
pub fn rule<P: Policy>(
    policy: &OnceLock<P>,
    signal: &Signal,
    case: &CaseFile,
    draft: &[Action],
) -> Result<Ruling, String> {
    policy.get().ok_or("called before configure")?.rule(signal, case, draft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, GuestLost, Kinds, Known, testing};

    #[derive(Default)]
    struct Passes;

    impl Policy for Passes {
        const NAME: &str = "passes";

        fn rule(&self, _: &Signal, _: &CaseFile, _: &[Action]) -> Result<Ruling, String> {
            Ok(Ruling::Pass)
        }
    }

    fn lost() -> Signal {
        testing::signal(Event::GuestLost(GuestLost { reason: "gone".to_owned() }))
    }

    #[test]
    fn policy_by_default_wants_all_and_needs_nothing() {
        let description = Description {
            name: "passes".to_owned(),
            version: "1.2.3".to_owned(),
            wants: Kinds::all().names(),
            needs: vec![],
            config_schema: None,
        };
        assert_eq!(describe::<Passes>("1.2.3"), description);
        let known = Known::KILL_COUNT | Known::OOM_WRITABLE;
        let names: Vec<String> = known.iter_names().map(|(name, _)| contract_name(name)).collect();
        assert_eq!(names, ["kill-count", "oom-writable"]);
    }

    #[test]
    fn policy_rules_after_being_configured_once() {
        let policy = OnceLock::<Passes>::new();
        assert_eq!(rule(&policy, &lost(), &testing::case(), &[]), Err("called before configure".to_owned()));
        assert_eq!(
            configure(&policy, r#"{"a": 1}"#),
            Err(vec![("a".to_owned(), "this policy has no configuration".to_owned())])
        );
        assert_eq!(configure(&policy, "{}"), Ok(()));
        assert_eq!(rule(&policy, &lost(), &testing::case(), &[]), Ok(Ruling::Pass));
        assert_eq!(configure(&policy, "{}"), Err(vec![(String::new(), "configured twice".to_owned())]));
    }
}
