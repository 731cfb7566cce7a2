//! A VM's PL011 (Arm DDI 0183): what it writes becomes console lines, what it configures has no effect.

use heapless::{Deque, String};
use platform::console;

use crate::width::Width;

/// The data register.
pub const DR: u64 = 0x00;
const FR: u64 = 0x18;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const ID: u64 = 0xfe0;

const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_ALL: u32 = 0x7ff;

/// Peripheral and cell identification, one byte a register.
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A finished piece of console output.
pub type Line = String<{ console::LONGEST_PIECE }>;

/// The guest's UART.
#[derive(Debug)]
pub struct VirtualUart {
    /// `ILPR`, `IBRD`, `FBRD` and `LCR_H`, kept for the guest only.
    line_registers: [u32; 4],
    control: u32,
    fifo_levels: u32,
    mask: u32,
    raw: u32,
    dma: u32,
    line: Line,
    input: Deque<u8, 64>,
}

impl Default for VirtualUart {
    fn default() -> Self {
        Self {
            line_registers: [0; 4],
            control: 0x300,
            fifo_levels: 0x12,
            mask: 0,
            raw: 0,
            dma: 0,
            line: Line::new(),
            input: Deque::new(),
        }
    }
}

impl VirtualUart {
    /// Whether its interrupt line is high.
    pub fn interrupt(&self) -> bool {
        self.raw & self.mask != 0
    }

    /// Reads the register at `offset`.
    pub fn read(&mut self, offset: u64, width: Width) -> u64 {
        let value = match offset & !3 {
            DR => {
                let byte = self.input.pop_front().unwrap_or(0);
                if self.input.is_empty() {
                    self.raw &= !INT_RX;
                }
                byte.into()
            }
            FR => {
                let empty = if self.input.is_empty() { FR_RXFE } else { 0 };
                let full = if self.has_room() { 0 } else { FR_RXFF };
                FR_TXFE | empty | full
            }
            register @ 0x20..=0x2c => self.line_registers[(register as usize - 0x20) / 4],
            CR => self.control,
            IFLS => self.fifo_levels,
            IMSC => self.mask,
            RIS => self.raw,
            MIS => self.raw & self.mask,
            0x48 => self.dma,
            register @ ID..=0xffc => IDENTIFICATION[(register - ID) as usize / 4].into(),
            _ => 0,
        };
        u64::from(value) >> (8 * (offset & 3)) & width.mask()
    }

    /// Writes the register at `offset`; returns a line that this completed.
    pub fn write(&mut self, offset: u64, value: u64) -> Option<Line> {
        let value = value as u32;
        match offset {
            DR => {
                // The FIFO drains at once, so it passes its trigger level with every byte.
                self.raw |= INT_TX;
                return self.transmit(value as u8);
            }
            0x20..=0x2c if offset.is_multiple_of(4) => {
                self.line_registers[(offset as usize - 0x20) / 4] = value & 0xffff;
            }
            CR => self.control = value & 0xffff,
            IFLS => self.fifo_levels = value & 0x3f,
            IMSC => self.mask = value & INT_ALL,
            ICR => self.raw &= !(value & INT_ALL),
            0x48 => self.dma = value & 7,
            _ => {}
        }
        None
    }

    fn transmit(&mut self, byte: u8) -> Option<Line> {
        if byte != b'\n' {
            // There is room: a longer piece has been taken.
            let _ = console::print(byte, &mut self.line);
        }
        (byte == b'\n' || self.line.len() > console::PIECE).then(|| core::mem::take(&mut self.line))
    }

    /// Takes what the guest wrote without ending its line.
    pub fn flush(&mut self) -> Option<Line> {
        (!self.line.is_empty()).then(|| core::mem::take(&mut self.line))
    }

    /// Whether [`VirtualUart::receive`] may be called.
    pub fn has_room(&self) -> bool {
        !self.input.is_full()
    }

    /// Types `byte`; it is lost if there is no room.
    pub fn receive(&mut self, byte: u8) {
        if self.input.push_back(byte).is_ok() {
            self.raw |= INT_RX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(uart: &mut VirtualUart, text: &[u8]) -> Vec<Line> {
        text.iter().filter_map(|&byte| uart.write(DR, byte.into())).collect()
    }

    #[test]
    fn lines_come_out_whole() {
        let mut uart = VirtualUart::default();
        assert_eq!(print(&mut uart, b"one\r\ntwo\nrest"), ["one", "two"]);
        assert_eq!(uart.flush().unwrap(), "rest");
        assert_eq!(uart.flush(), None);
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        let mut uart = VirtualUart::default();
        assert_eq!(print(&mut uart, b"\x1b[2J\x80\n"), ["\\x1b[2J\\x80"]);
    }

    #[test]
    fn an_endless_line_is_split() {
        let mut uart = VirtualUart::default();
        let pieces = print(&mut uart, &[0x1b; 200]);
        assert_eq!(pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(), [252, 252, 252]);
        let ended = print(&mut uart, b"\x1b\x1b\n");
        assert_eq!(ended.iter().map(|piece| piece.len()).collect::<Vec<_>>(), [52]);
    }

    #[test]
    fn a_driver_finds_a_pl011() {
        let mut uart = VirtualUart::default();
        let id: Vec<u64> = (0..8).map(|i| uart.read(ID + 4 * i, Width::Word)).collect();
        assert_eq!(id, [0x11, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!(uart.read(FR, Width::Word), u64::from(FR_TXFE | FR_RXFE));
    }

    #[test]
    fn the_transmit_interrupt_follows_its_mask() {
        let mut uart = VirtualUart::default();
        uart.write(DR, b'x'.into());
        assert!(!uart.interrupt());
        uart.write(IMSC, INT_TX.into());
        assert!(uart.interrupt());
        uart.write(ICR, INT_TX.into());
        assert!(!uart.interrupt());
    }

    #[test]
    fn typed_bytes_raise_the_receive_interrupt_until_read() {
        let mut uart = VirtualUart::default();
        uart.write(IMSC, INT_RX.into());
        uart.receive(b'a');
        assert!(uart.interrupt());
        assert_eq!(uart.read(DR, Width::Byte), u64::from(b'a'));
        assert!(!uart.interrupt());
    }

    #[test]
    fn what_has_no_room_can_wait() {
        let mut uart = VirtualUart::default();
        let mut typed = 0;
        while uart.has_room() {
            uart.receive(b'a');
            typed += 1;
        }
        let full = u64::from(FR_TXFE | FR_RXFF);
        assert_eq!(uart.read(FR, Width::Word), full);
        assert_eq!(uart.read(DR, Width::Word), u64::from(b'a'));
        assert!(uart.has_room());
        assert_eq!(uart.read(FR, Width::Word), u64::from(FR_TXFE));
        let left = (0..100).filter(|_| uart.read(DR, Width::Word) != 0).count();
        assert_eq!(left, typed - 1);
    }
}
