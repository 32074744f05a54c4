;; Fills the log: a hundred thousand lines of two thousand bytes, and then passes as if nothing were.
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (local $at i32) (local $line i32)
  (loop $on
    (call $log (i32.const 2) (i32.const 32768) (i32.const 2000))
    (local.set $line (i32.add (local.get $line) (i32.const 1)))
    (br_if $on (i32.lt_u (local.get $line) (i32.const 100000))))
  (local.set $at (call $grow (i32.const 64)))
  (memory.fill (local.get $at) (i32.const 0) (i32.const 64))
  (local.get $at))
