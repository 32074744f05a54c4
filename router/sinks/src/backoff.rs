//! Exponential back-off between two attempts, without a limit on their number.

use std::time::Duration;

use backon::ExponentialBuilder;

/// Delays from `first`, doubled up to `longest`.
pub(super) fn exponential(first: Duration, longest: Duration) -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(first).with_max_delay(longest).without_max_times()
}
