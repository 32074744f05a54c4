;; Takes any configuration: for guests that have no vice there.
(func (export "coroner:policy/rules@0.1.0#configure") (param i32 i32) (result i32)
  (i32.store (i32.const 1152) (i32.const 0)) (i32.const 1152))
