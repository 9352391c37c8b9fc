//! Bytes as callers send them to samples from -1 to 1.

pub mod file;

use contracts::Encoding;

/// Appends the samples in `data` to `into`. Bytes after the last whole sample are ignored; frames hold none.
pub fn samples(encoding: Encoding, data: &[u8], into: &mut Vec<f32>) {
    match encoding {
        Encoding::Linear16 => into.extend(data.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0)),
        Encoding::Float32 => into.extend(data.chunks_exact(4).map(|b| clean(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))),
        Encoding::Mulaw => into.extend(data.iter().map(|b| MULAW[*b as usize])),
        Encoding::Alaw => into.extend(data.iter().map(|b| ALAW[*b as usize])),
    }
}

/// What is no number is silence; what is louder than full scale is full scale.
fn clean(sample: f32) -> f32 {
    if sample.is_finite() { sample.clamp(-1.0, 1.0) } else { 0.0 }
}

static MULAW: [f32; 256] = table(true);
static ALAW: [f32; 256] = table(false);

const fn table(mulaw: bool) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (if mulaw { from_mulaw(byte as u8) } else { from_alaw(byte as u8) }) as f32 / 32_768.0;
        byte += 1;
    }
    table
}

/// ITU-T G.711.
const fn from_mulaw(byte: u8) -> i32 {
    let bits = !byte as i32;
    let size = (((bits & 0x0f) << 3) + 0x84) << ((bits & 0x70) >> 4);
    if bits & 0x80 != 0 { 0x84 - size } else { size - 0x84 }
}

const fn from_alaw(byte: u8) -> i32 {
    let bits = byte as i32 ^ 0x55;
    let step = (bits & 0x0f) << 4;
    let size = match (bits & 0x70) >> 4 {
        0 => step + 0x8,
        segment => (step + 0x108) << (segment - 1),
    };
    if bits & 0x80 != 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoding: Encoding, data: &[u8]) -> Vec<f32> {
        let mut out = vec![];
        samples(encoding, data, &mut out);
        out
    }

    #[test]
    fn the_ends_and_the_middle_of_each_scale_are_where_g711_puts_them() {
        let scaled = |v: Vec<f32>| v.into_iter().map(|s| s * 32_768.0).collect::<Vec<_>>();
        assert_eq!(scaled(decoded(Encoding::Mulaw, &[0x00, 0x80, 0xff, 0x7f])), [-32_124.0, 32_124.0, 0.0, 0.0]);
        assert_eq!(scaled(decoded(Encoding::Alaw, &[0x2a, 0xaa, 0xd5, 0x55])), [-32_256.0, 32_256.0, 8.0, -8.0]);
        assert_eq!(scaled(decoded(Encoding::Linear16, &[0x00, 0x80, 0xff, 0x7f])), [-32_768.0, 32_767.0]);
    }

    #[test]
    fn rubbish_floats_become_silence_and_loud_ones_full_scale() {
        let bytes: Vec<u8> = [0.25f32, f32::NAN, f32::INFINITY, 7.0, -7.0].iter().flat_map(|f| f.to_le_bytes()).collect();
        assert_eq!(decoded(Encoding::Float32, &bytes), [0.25, 0.0, 0.0, 1.0, -1.0]);
    }
}
