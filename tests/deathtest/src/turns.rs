//! The order of a turn: handlers alternate, so that a machine that gets busier favours none.

/// The handlers of turn number `turn`, by their index. The first one is the next one each turn.
pub(crate) fn turn(turn: usize, handlers: usize) -> impl Iterator<Item = usize> {
    (0..handlers).map(move |at| (turn + at) % handlers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_handler_alternates() {
        let of = |number, handlers| turn(number, handlers).collect::<Vec<_>>();
        assert_eq!([of(0, 2), of(1, 2), of(2, 2)], [[0, 1], [1, 0], [0, 1]]);
        assert_eq!([of(1, 3), of(5, 3)], [[1, 2, 0], [2, 0, 1]]);
        assert_eq!(of(4, 1), [0]);
    }
}
