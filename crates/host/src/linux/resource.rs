//! The BARs, from `resource`.

use crate::Bar;

const IO: u64 = 0x100;
const PREFETCH: u64 = 0x2000;
const MEMORY_64: u64 = 0x0010_0000;

/// Standard BARs; later lines are the ROM, SR-IOV BARs and bridge windows.
const BARS: usize = 6;

/// Parses the first six lines `START END FLAGS`. Lines of zeros are BARs that aren't there.
pub(super) fn parse(text: &[u8]) -> Vec<Bar> {
    let lines = text.split(|byte| *byte == b'\n').take(BARS);
    (0_u32..).zip(lines).filter_map(|(index, line)| bar(index, line)).collect()
}

fn bar(index: u32, line: &[u8]) -> Option<Bar> {
    let mut fields = line.split(|byte| *byte == b' ').map(number);
    let (start, end, flags) = (fields.next()??, fields.next()??, fields.next()??);
    if flags == 0 || end < start || (start, end) == (0, 0) {
        return None;
    }
    Some(Bar {
        index,
        size_bytes: (end - start).saturating_add(1),
        io: flags & IO != 0,
        memory64: flags & MEMORY_64 != 0,
        prefetchable: flags & PREFETCH != 0,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    let digits = field.strip_prefix(b"0x")?;
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(sum << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_memory_port_and_64_bit_bars() {
        let text = b"0x00000000fe000000 0x00000000fe0fffff 0x0000000000040200\n\
            0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
            0x0000380000000000 0x00003800ffffffff 0x000000000014220c\n\
            0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let bars = parse(text);
        assert_eq!(bars.len(), 3);
        assert_eq!((bars[0].index, bars[0].size_bytes, bars[0].io), (0, 1 << 20, false));
        assert_eq!((bars[1].index, bars[1].size_bytes, bars[1].io), (1, 32, true));
        assert!(bars[2].memory64 && bars[2].prefetchable);
        assert_eq!(bars[2].size_bytes, 1 << 32);
    }

    #[test]
    fn garbage_has_no_bars() {
        for text in ["", "\n\n", "0x 0x 0x", "zz", "0x1 0x0 0x200", "0x11111111111111111 0x2 0x3"] {
            assert_eq!(parse(text.as_bytes()), []);
        }
        let all = "0x0000000000000000 0xffffffffffffffff 0x200";
        assert_eq!(parse(all.as_bytes())[0].size_bytes, u64::MAX);
    }
}
