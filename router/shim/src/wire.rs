//! Reads and replaces fields of protobuf messages as bytes: unknown fields stay in them.

/// A message that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed")]
pub(crate) struct Malformed;

/// A field's value. A shim's messages have no fixed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// One field of a message, with its encoded bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) value: Value<'a>,
    raw: &'a [u8],
}

/// The fields of a message in their order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self) -> Result<Field<'a>, Malformed> {
        let whole = self.0;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
        // The encoding's wire types; 3 and 4 are groups, which proto3 does not have.
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.bytes(usize::try_from(length).map_err(|_| Malformed)?)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed),
        };
        Ok(Field { number, value, raw: &whole[..whole.len() - self.0.len()] })
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for at in 0..10 {
            let byte = *self.0.get(at).ok_or(Malformed)?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.take();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Replaces a field by a number. As in proto3, zero is encoded as no field.
pub(crate) fn with_varint(message: &[u8], number: u32, value: u64) -> Result<Vec<u8>, Malformed> {
    let mut field = Vec::new();
    if value != 0 {
        push_varint(&mut field, u64::from(number) << 3);
        push_varint(&mut field, value);
    }
    with(message, number, &field)
}

/// Replaces a field by bytes.
pub(crate) fn with_bytes(message: &[u8], number: u32, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut field = Vec::with_capacity(bytes.len() + 12);
    push_varint(&mut field, u64::from(number) << 3 | 2);
    push_varint(&mut field, bytes.len() as u64);
    field.extend_from_slice(bytes);
    with(message, number, &field)
}

/// The field replaces the first one of its number, or is appended.
fn with(message: &[u8], number: u32, encoded: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(message.len() + encoded.len());
    let mut placed = false;
    for field in Fields(message) {
        let field = field?;
        if field.number != number {
            out.extend_from_slice(field.raw);
        } else if !std::mem::replace(&mut placed, true) {
            out.extend_from_slice(encoded);
        }
    }
    if !placed {
        out.extend_from_slice(encoded);
    }
    Ok(out)
}

fn push_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields 1 (varint 300), 2 ("ab"), 15 (fixed32), 16 (fixed64), 3 (varint 0, as no encoder
    /// writes it).
    const MESSAGE: &[u8] = b"\x08\xac\x02\x12\x02ab\x7d1234\x81\x0112345678\x18\x00";

    #[test]
    fn fields_read_in_order() {
        let fields: Vec<_> =
            Fields(MESSAGE).map(|field| field.map(|it| (it.number, it.value)).unwrap()).collect();
        let (fixed, bytes) = (Value::Fixed, Value::Bytes(b"ab"));
        let expect = [(1, Value::Varint(300)), (2, bytes), (15, fixed), (16, fixed), (3, Value::Varint(0))];
        assert_eq!(fields, expect);
    }

    #[test]
    fn one_field_replaced_and_others_unchanged() {
        for (number, value, expect) in [
            (1, 5, &b"\x08\x05\x12\x02ab\x7d1234\x81\x0112345678\x18\x00"[..]),
            (1, 0, b"\x12\x02ab\x7d1234\x81\x0112345678\x18\x00"),
            (3, 137, b"\x08\xac\x02\x12\x02ab\x7d1234\x81\x0112345678\x18\x89\x01"),
            (9, 1, b"\x08\xac\x02\x12\x02ab\x7d1234\x81\x0112345678\x18\x00\x48\x01"),
        ] {
            assert_eq!(with_varint(MESSAGE, number, value).unwrap(), expect, "{number} {value}");
        }
        assert_eq!(with_varint(b"\x08\x01\x10\x02\x08\x03", 1, 4).unwrap(), b"\x08\x04\x10\x02");
        assert_eq!(with_bytes(b"\x12\x02ab\x08\x01", 2, b"xyz").unwrap(), b"\x12\x03xyz\x08\x01");
    }

    #[test]
    fn malformed_message_is_an_error() {
        let endless = [0xff; 11];
        for bad in [
            &b"\x08"[..],
            b"\x12\x03ab",
            b"\x0b",
            b"\x7d123",
            &endless,
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert!(Fields(bad).any(|field| field.is_err()), "{bad:?}");
            assert_eq!(with_varint(bad, 9, 1), Err(Malformed));
        }
    }
}
