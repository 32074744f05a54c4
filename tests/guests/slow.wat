;; Burns some eighty million units of fuel and passes: for a limit that lets it.
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32) (local $turn i32)
  (loop $on
    (local.set $turn (i32.add (local.get $turn) (i32.const 1)))
    (br_if $on (i32.lt_u (local.get $turn) (i32.const 11000000))))
  (local.set $at (call $grow (i32.const 64)))
  (memory.fill (local.get $at) (i32.const 0) (i32.const 64))
  (local.get $at))
