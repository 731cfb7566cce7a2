//! A program for a Linux guest that takes all the time that nobody else wants, and notes how much others take from it.
//!
//! On a machine whose time is a count of instructions, time in which every CPU sleeps is skipped, and how much of it passes
//! while a disk works is the host's business. With a CPU that never sleeps, time is instructions; and what this program
//! misses is what everybody else executed: the kernel, its interrupts, and EL2 below it.

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// Bytes in front of its code: the file's header, and that of its one segment.
const HEADERS: u64 = 64 + 56;

/// Maps the file that its argument names, and writes two 64-bit words to it whenever it was interrupted: how far the virtual
/// counter has moved in all interruptions, and the counter after this one. A round of its loop is five instructions; 64
/// steps of the counter are more than one ever takes.
#[rustfmt::skip]
const CODE: [u32; 24] = [
    0xf940_0be1, // ldr     x1, [sp, #16]
    0x9280_0c60, // mov     x0, #-100       AT_FDCWD
    0xd280_0042, // mov     x2, #2          O_RDWR
    0xd280_0003, // mov     x3, #0
    0xd280_0708, // mov     x8, #56         openat
    0xd400_0001, // svc     #0
    0xaa00_03e4, // mov     x4, x0
    0xd280_0000, // mov     x0, #0
    0xd282_0001, // mov     x1, #4096
    0xd280_0062, // mov     x2, #3          PROT_READ | PROT_WRITE
    0xd280_0023, // mov     x3, #1          MAP_SHARED
    0xd280_0005, // mov     x5, #0
    0xd280_1bc8, // mov     x8, #222        mmap
    0xd400_0001, // svc     #0
    0xd280_0009, // mov     x9, #0
    0xd53b_e04b, // mrs     x11, cntvct_el0
    0xd53b_e04c, // 1: mrs  x12, cntvct_el0
    0xcb0b_018d, // sub     x13, x12, x11
    0xaa0c_03eb, // mov     x11, x12
    0xf101_01bf, // cmp     x13, #64
    0x54ff_ff89, // b.ls    1b
    0x8b0d_0129, // add     x9, x9, x13
    0xa900_3009, // stp     x9, x12, [x0]
    0x17ff_fff9, // b       1b
];

/// The program: a static 64-bit ELF file for Linux on arm64.
pub fn program() -> Vec<u8> {
    let size = HEADERS + 4 * CODE.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // An executable for AArch64; its entry; program headers behind this header, no section headers.
    [2_u16, 183].iter().for_each(|half| put(&half.to_le_bytes()));
    put(&1_u32.to_le_bytes());
    [BASE + HEADERS, 64, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    put(&0_u32.to_le_bytes());
    [64_u16, 56, 1, 64, 0, 0].iter().for_each(|half| put(&half.to_le_bytes()));
    // One segment to load, readable and executable: all of the file.
    [1_u32, 5].iter().for_each(|word| put(&word.to_le_bytes()));
    [0, BASE, BASE, size, size, 0x1000].iter().for_each(|word: &u64| put(&word.to_le_bytes()));
    CODE.iter().for_each(|word| put(&word.to_le_bytes()));
    file
}

#[cfg(test)]
mod tests {
    use elf::ElfBytes;
    use elf::endian::LittleEndian;

    use super::*;

    #[test]
    fn it_is_an_elf_file_that_starts_with_its_code() {
        let program = program();
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&program).unwrap();
        assert_eq!((elf.ehdr.e_machine, elf.ehdr.e_entry), (183, BASE + HEADERS));
        let segments = elf.segments().unwrap();
        let segment = segments.get(0).unwrap();
        assert_eq!((segments.len(), segment.p_vaddr), (1, BASE));
        assert_eq!(segment.p_filesz, program.len() as u64);
        assert_eq!(program[HEADERS as usize..][..4], CODE[0].to_le_bytes());
    }
}
