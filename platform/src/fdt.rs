//! Reading a flattened tree (Devicetree Specification, chapter 5) where it lies: the format of device trees and of
//! FIT images.
//!
//! Everything is checked once, in [`Tree::open`]; after that, walking needs no errors. Names are printable ASCII,
//! so that they can go to a console, but of any length: half of the boards that Linux knows have names that are
//! longer than the specification allows.

mod check;

use core::fmt;

const MAGIC: u32 = 0xd00d_feed;
/// Bytes of the header.
const HEADER: usize = 40;
/// Bytes of a cell, to which everything is aligned.
const CELL: usize = 4;
/// Bytes of an entry of the memory reservation block.
const RESERVATION: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Why bytes are not a flattened tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobError {
    /// They do not start with a flattened tree's magic number.
    Magic,
    /// There are fewer of them than the header says.
    CutShort,
    /// What is at this offset is not what the format wants there.
    Damaged {
        /// The offset in bytes.
        offset: u32,
        /// What is wrong there.
        what: &'static str,
    },
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("it does not start like a flattened tree"),
            Self::CutShort => f.write_str("it is shorter than its header says"),
            Self::Damaged { offset, what } => write!(f, "damaged at offset {offset:#x}: {what}"),
        }
    }
}

impl core::error::Error for BlobError {}

/// Returns the size in bytes of the flattened tree that starts with `header`.
///
/// # Errors
///
/// [`BlobError::Magic`] if none starts like this.
pub fn total_size(header: [u8; 8]) -> Result<u32, BlobError> {
    let [m0, m1, m2, m3, size @ ..] = header;
    match u32::from_be_bytes([m0, m1, m2, m3]) {
        MAGIC => Ok(u32::from_be_bytes(size)),
        _ => Err(BlobError::Magic),
    }
}

/// A flattened tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree<'a> {
    /// From the header to the end of the structure block.
    blob: &'a [u8],
    /// Where the structure block starts: the root.
    structure: usize,
    /// The strings block.
    strings: &'a [u8],
    /// The memory reservation block and what follows.
    reservations: &'a [u8],
}

impl<'a> Tree<'a> {
    /// Checks the flattened tree at the start of `bytes`; others may follow.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let size = total_size(*bytes.first_chunk().ok_or(BlobError::CutShort)?)?;
        let blob = bytes.get(..size as usize).ok_or(BlobError::CutShort)?;
        check::check(blob)
    }

    /// Returns the root.
    pub(crate) fn root(self) -> Node<'a> {
        Node { tree: self, at: self.structure + CELL }
    }

    /// Finds a node by its path. A name without unit address finds the first node with that name and any.
    pub(crate) fn find(self, path: &str) -> Option<Node<'a>> {
        let mut names = path.strip_prefix('/')?.split('/').filter(|name| !name.is_empty());
        names.try_fold(self.root(), |node, name| node.child(name))
    }

    /// Returns the memory reservation block: addresses and sizes.
    pub(crate) fn reservations(self) -> impl Iterator<Item = (u64, u64)> {
        let entries = self.reservations.as_chunks::<RESERVATION>().0.iter();
        entries.take_while(|entry| **entry != [0; RESERVATION]).map(|entry| {
            let number = u128::from_be_bytes(*entry);
            ((number >> 64) as u64, number as u64)
        })
    }

    /// Reads the cell at `at`; what was checked has all the cells that are asked for.
    fn cell(self, at: usize) -> u32 {
        match self.blob.get(at..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => u32::from_be_bytes(*bytes),
            None => END,
        }
    }

    /// Returns the offset of the first token at or after `at` that means something.
    fn skip_nops(self, at: usize) -> usize {
        let mut at = at;
        while self.cell(at) == NOP {
            at += CELL;
        }
        at
    }

    /// Returns the property whose token is at `at`, as the offsets of its name and of its value, and the value's
    /// length.
    fn property(self, at: usize) -> Option<(usize, usize, usize)> {
        if self.cell(at) != PROPERTY {
            return None;
        }
        let (length, name) = (self.cell(at + CELL), self.cell(at + 2 * CELL));
        Some((name as usize, at + 3 * CELL, length as usize))
    }

    /// Returns the offset after the name at `at`.
    fn after_name(self, at: usize) -> usize {
        (at + until_nul(self.blob.get(at..).unwrap_or_default()).len() + 1).next_multiple_of(CELL)
    }
}

/// A node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    tree: Tree<'a>,
    /// Where its name is.
    at: usize,
}

/// Two nodes of one tree are equal if they are the same.
impl PartialEq for Node<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<'a> Node<'a> {
    /// Returns the name, with the unit address if it has one.
    pub(crate) fn name(self) -> &'a str {
        printable(self.tree.blob.get(self.at..).unwrap_or_default())
    }

    /// Returns the properties.
    pub(crate) fn properties(self) -> Properties<'a> {
        Properties { tree: self.tree, at: self.tree.after_name(self.at) }
    }

    /// Returns a property's value.
    pub(crate) fn value(self, property: &str) -> Option<&'a [u8]> {
        self.properties().find(|candidate| candidate.is(property)).map(|property| property.value)
    }

    /// Returns a property's value if it is a string.
    pub(crate) fn text(self, property: &str) -> Option<&'a str> {
        text(self.value(property)?)
    }

    /// Returns the children.
    pub(crate) fn children(self) -> Children<'a> {
        self.properties().children()
    }

    /// Returns the first child with this name; without unit address in `name`, any will do.
    pub(crate) fn child(self, name: &str) -> Option<Self> {
        self.children().find(|child| {
            let rest = self.tree.blob.get(child.at..);
            let rest = rest.and_then(|candidate| candidate.strip_prefix(name.as_bytes()));
            matches!(rest, Some([0 | b'@', ..]))
        })
    }
}

/// A property.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Property<'a> {
    /// The strings block from its name on.
    name: &'a [u8],
    /// Its value.
    pub(crate) value: &'a [u8],
}

impl<'a> Property<'a> {
    /// Returns its name.
    pub(crate) fn name(self) -> &'a str {
        printable(self.name)
    }

    /// Whether this is its name.
    pub(crate) fn is(self, name: &str) -> bool {
        self.name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// A node's properties.
#[derive(Clone, Debug)]
pub(crate) struct Properties<'a> {
    tree: Tree<'a>,
    at: usize,
}

impl<'a> Iterator for Properties<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        self.at = self.tree.skip_nops(self.at);
        let (name, value, length) = self.tree.property(self.at)?;
        self.at = (value + length).next_multiple_of(CELL);
        Some(Property {
            name: self.tree.strings.get(name..)?,
            value: self.tree.blob.get(value..value + length)?,
        })
    }
}

impl<'a> Properties<'a> {
    /// Returns the node's children, for which the properties that are left are passed over.
    pub(crate) fn children(mut self) -> Children<'a> {
        self.by_ref().for_each(drop);
        Children { tree: self.tree, at: self.at }
    }
}

/// A node's children.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Children<'a> {
    tree: Tree<'a>,
    /// The next child, or the end of the node.
    at: usize,
}

impl<'a> Children<'a> {
    /// Returns the next child, and stays where it is.
    pub(crate) fn peek(&mut self) -> Option<Node<'a>> {
        self.at = self.tree.skip_nops(self.at);
        let begins = self.tree.cell(self.at) == BEGIN_NODE;
        begins.then_some(Node { tree: self.tree, at: self.at + CELL })
    }

    /// Goes on after a child of which these are children too: what was read of it need not be passed over again.
    pub(crate) fn skip_to_end_of(&mut self, mut grandchildren: Self) {
        while grandchildren.next().is_some() {}
        self.at = grandchildren.at + CELL;
    }
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let node = self.peek()?;
        let mut depth = 0_u32;
        loop {
            match self.tree.cell(self.at) {
                BEGIN_NODE => {
                    depth += 1;
                    let after_name = self.tree.after_name(self.at + CELL);
                    self.at = Properties { tree: self.tree, at: after_name }.children().at;
                }
                END_NODE => {
                    depth -= 1;
                    self.at += CELL;
                    if depth == 0 {
                        return Some(node);
                    }
                }
                NOP => self.at += CELL,
                // A tree that was checked does not end here.
                _ => return Some(node),
            }
        }
    }
}

/// Returns a value as a string.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let text = value.strip_suffix(b"\0").filter(|text| !text.contains(&0))?;
    core::str::from_utf8(text).ok()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Returns a name that was checked.
fn printable(bytes: &[u8]) -> &str {
    core::str::from_utf8(until_nul(bytes)).unwrap_or_default()
}
