;; Grows a table without end: tables are the router's memory, not the policy's.
(table $table 1 funcref)
(func (export "coroner:policy/rules@0.1.0#rule") (param i32) (result i32)
  (loop $on (drop (table.grow $table (ref.null func) (i32.const 5000))) (br $on)) (i32.const 0))
