;; Spins on containers whose id begins with s, and passes on others.
(func (export "coroner:policy/rules@0.1.0#rule") (param $arguments i32) (result i32)
  (local $at i32)
  (global.set $next (i32.const 32768))
  ;; 92 bytes into the arguments is where the container's id lies: after the signal's id, its moment, and four texts of its target.
  (if (i32.eq (i32.load8_u (i32.load offset=92 (local.get $arguments))) (i32.const 115))
    (then (loop $on (br $on))))
  (local.set $at (call $grow (i32.const 64)))
  (memory.fill (local.get $at) (i32.const 0) (i32.const 64))
  (local.get $at))
