//! Short ways to write a ruling.

use crate::{Decision, Ruling};

impl Ruling {
    /// Replaces the draft by `actions`, in this order. `because` is one sentence for a person, at most 1 KiB.
    ///
    /// ```
    /// # use coroner_sdk::prelude::*;
    /// let ruling = Ruling::decide([Action::TaskOom], "its own log says so").by_rule("heap-dump");
    /// # assert!(matches!(ruling, Ruling::Decide(_)));
    /// ```
    pub fn decide(actions: impl Into<Vec<crate::Action>>, because: impl Into<String>) -> Self {
        Self::Decide(Decision { actions: actions.into(), because: because.into(), rule: None })
    }

    /// Names the rule that decided, for machines: a stable name of at most 64 characters. A pass has none.
    #[must_use]
    pub fn by_rule(mut self, rule: impl Into<String>) -> Self {
        if let Self::Decide(decision) = &mut self {
            decision.rule = Some(rule.into());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    #[test]
    fn a_decision_carries_its_reason_and_its_rule() {
        let decision = Decision {
            actions: vec![Action::TaskExit(None)],
            because: "it ended".to_owned(),
            rule: Some("exit".to_owned()),
        };
        assert_eq!(
            Ruling::decide([Action::TaskExit(None)], "it ended").by_rule("exit"),
            Ruling::Decide(decision)
        );
    }

    #[test]
    fn a_rule_that_was_not_named_is_none() {
        let decision = Decision { actions: vec![], because: "nothing".to_owned(), rule: None };
        assert_eq!(Ruling::decide([], "nothing"), Ruling::Decide(decision));
    }

    #[test]
    fn a_pass_has_no_rule() {
        assert_eq!(Ruling::Pass.by_rule("exit"), Ruling::Pass);
    }
}
