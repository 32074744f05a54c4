//! Constructors of rulings.

use crate::{Decision, Ruling};

impl Ruling {
    /// Replaces the draft by `actions`, in this order. `because`: a sentence, at most 1 KiB.
    ///
    /// ```
    /// # use coroner_sdk::prelude::*;
    /// let ruling = Ruling::decide([Action::TaskOom], "its log has a heap dump").by_rule("heap-dump");
    /// # assert!(matches!(ruling, Ruling::Decide(_)));
    /// ```
    pub fn decide(actions: impl Into<Vec<crate::Action>>, because: impl Into<String>) -> Self {
        Self::Decide(Decision { actions: actions.into(), because: because.into(), rule: None })
    }

    /// Sets the rule that decided: a stable name of at most 64 characters. A pass has none.
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
    fn decision_carries_reason_and_rule() {
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
    fn decision_without_rule_has_none() {
        let decision = Decision { actions: vec![], because: "nothing".to_owned(), rule: None };
        assert_eq!(Ruling::decide([], "nothing"), Ruling::Decide(decision));
    }

    #[test]
    fn pass_has_no_rule() {
        assert_eq!(Ruling::Pass.by_rule("exit"), Ruling::Pass);
    }
}
