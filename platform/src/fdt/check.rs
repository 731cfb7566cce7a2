//! What makes walking a tree safe.

use super::{
    BEGIN_NODE, BlobError, CELL, END, END_NODE, HEADER, NOP, PROPERTY, RESERVATION, Tree, until_nul,
};

/// The version of the format, which both the newest and the oldest version that the header names must admit.
const VERSION: u32 = 17;
const REACHES_PAST: &str = "something reaches past the end";

pub(super) fn check(blob: &[u8]) -> Result<Tree<'_>, BlobError> {
    if blob.len() < HEADER {
        return Err(BlobError::CutShort);
    }
    // Fields that are offsets and sizes have 32 bits, so that sums of two do not overflow.
    let field = |index: usize| cell(blob, index * CELL);
    let (structure, strings, reservations) =
        (field(2)? as usize, field(3)? as usize, field(4)? as usize);
    let (strings_size, structure_size) = (field(8)? as usize, field(9)? as usize);
    if !(field(6)?..=field(5)?).contains(&VERSION) {
        return Err(damaged(5 * CELL, "the format is not version 17"));
    }
    if !structure.is_multiple_of(CELL) {
        return Err(damaged(2 * CELL, "the structure is not aligned"));
    }
    let tree = Tree {
        blob: blob
            .get(..structure + structure_size)
            .ok_or_else(|| damaged(9 * CELL, "the structure reaches past the end"))?,
        structure,
        strings: blob
            .get(strings..strings + strings_size)
            .ok_or_else(|| damaged(8 * CELL, "the strings reach past the end"))?,
        reservations: blob.get(reservations..).unwrap_or_default(),
    };
    if !tree.reservations.as_chunks().0.contains(&[0; RESERVATION]) {
        return Err(damaged(reservations, "the memory reservations do not end"));
    }
    let odd = |byte: &u8| *byte != 0 && !byte.is_ascii_graphic();
    if let Some(at) = tree.strings.iter().position(odd) {
        return Err(damaged(strings + at, "a property's name is not printable"));
    }
    check_structure(&tree)?;
    Ok(tree)
}

/// Checks the structure block: one root node, balanced nodes, properties before children, names with an end.
fn check_structure(tree: &Tree<'_>) -> Result<(), BlobError> {
    // What is after the last end is part of no name.
    let names = tree.strings.iter().rposition(|byte| *byte == 0).map_or(0, |end| end + 1);
    let mut at = tree.structure;
    let mut depth = 0_u32;
    let mut in_properties = false;
    loop {
        let token = cell(tree.blob, at)?;
        let next = at + CELL;
        at = match token {
            BEGIN_NODE if depth > 0 || at == tree.structure => {
                depth += 1;
                in_properties = true;
                node_name(tree.blob, next, depth == 1)?
            }
            END_NODE if depth > 0 => {
                depth -= 1;
                in_properties = false;
                next
            }
            PROPERTY if in_properties => property(tree.blob, next, names)?,
            NOP if at > tree.structure => next,
            END if depth == 0 && at > tree.structure => return Ok(()),
            _ => return Err(damaged(at, "no such token can be here")),
        };
    }
}

/// Checks a node's name and returns the offset after it.
fn node_name(blob: &[u8], at: usize, is_root: bool) -> Result<usize, BlobError> {
    let rest = blob.get(at..).unwrap_or_default();
    let name = until_nul(rest);
    if name.len() == rest.len() {
        return Err(damaged(at, REACHES_PAST));
    }
    if name.is_empty() != is_root {
        return Err(damaged(at, "the root alone has no name"));
    }
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(damaged(at, "a node's name is not printable"));
    }
    Ok((at + name.len() + 1).next_multiple_of(CELL))
}

/// Checks a property, from its length on, and returns the offset after it.
fn property(blob: &[u8], at: usize, names: usize) -> Result<usize, BlobError> {
    let (length, name) = (cell(blob, at)? as usize, cell(blob, at + CELL)? as usize);
    if name >= names {
        return Err(damaged(at + CELL, "a property's name reaches past the end"));
    }
    let end = at + 2 * CELL + length;
    if end > blob.len() {
        return Err(damaged(at, "a property's value reaches past the end"));
    }
    Ok(end.next_multiple_of(CELL))
}

fn cell(blob: &[u8], at: usize) -> Result<u32, BlobError> {
    match blob.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => Ok(u32::from_be_bytes(*bytes)),
        None => Err(damaged(at, REACHES_PAST)),
    }
}

fn damaged(offset: usize, what: &'static str) -> BlobError {
    // Offsets are below the size, which has 32 bits.
    BlobError::Damaged { offset: offset.try_into().unwrap_or(u32::MAX), what }
}

#[cfg(test)]
mod tests {
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let mut child = DeviceTreeNode::new("child").unwrap();
        child.add_property(DeviceTreeProperty::new("value", 7_u32).unwrap());
        tree.root.add_child(child);
        tree.to_dtb()
    }

    fn what(blob: &[u8]) -> &'static str {
        match Tree::open(blob) {
            Err(BlobError::Damaged { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_whole_tree_passes() {
        let mut blob = sample();
        blob.push(0xff);
        let root = Tree::open(&blob).unwrap().root();
        assert_eq!(root.name(), "");
        assert_eq!(root.child("child").unwrap().value("value"), Some([0, 0, 0, 7].as_slice()));
        assert_eq!(root.child("child").unwrap().value("val"), None);
        assert_eq!(root.children().count(), 1);
    }

    #[test]
    fn nops_may_be_anywhere_but_before_the_root() {
        let good = sample();
        let structure = u32::from_be_bytes(good[8..12].try_into().unwrap()) as usize;
        // After the root's name, after the child's name, after its property, after its end, after the root's end.
        for at in [8, 20, 36, 40, 44] {
            let mut blob = good.clone();
            let nop = NOP.to_be_bytes();
            blob.splice(structure + at..structure + at, nop.into_iter().chain(nop));
            for field in [1, 3, 9] {
                let cell = &mut blob[field * CELL..][..CELL];
                let value = u32::from_be_bytes(cell.try_into().unwrap()) + 8;
                cell.copy_from_slice(&value.to_be_bytes());
            }
            let root = Tree::open(&blob).unwrap().root();
            assert_eq!(root.children().count(), 1);
            assert_eq!(root.properties().count(), 0);
            assert_eq!(root.child("child").unwrap().properties().count(), 1);
        }
    }

    #[test]
    fn long_names_pass() {
        let mut tree = DeviceTree::new();
        let name = "a-name-that-is-longer-than-thirty-one-characters";
        tree.root.add_property(DeviceTreeProperty::new_unchecked(name, 7_u32));
        tree.root.add_child(DeviceTreeNode::new_unchecked(name));
        let blob = tree.to_dtb();
        let root = Tree::open(&blob).unwrap().root();
        assert!(root.value(name).is_some() && root.child(name).is_some());
    }

    #[test]
    fn every_kind_of_damage_is_noticed() {
        let good = sample();
        let opened = |blob: &[u8]| Tree::open(blob).unwrap_err();
        assert_eq!(opened(&good[..7]), BlobError::CutShort);
        assert_eq!(opened(&good[..good.len() - 1]), BlobError::CutShort);
        let structure = u32::from_be_bytes(good[8..12].try_into().unwrap()) as usize;
        let strings = u32::from_be_bytes(good[12..16].try_into().unwrap()) as usize;
        let set = |at: usize, cell: u32| {
            let mut blob = good.clone();
            blob[at..at + 4].copy_from_slice(&cell.to_be_bytes());
            blob
        };
        assert_eq!(opened(&set(0, 0)), BlobError::Magic);
        assert_eq!(opened(&set(4, 30)), BlobError::CutShort);
        assert_eq!(what(&set(20, 16)), "the format is not version 17");
        assert_eq!(what(&set(24, 18)), "the format is not version 17");
        assert_eq!(what(&set(8, 58)), "the structure is not aligned");
        assert_eq!(what(&set(36, u32::MAX)), "the structure reaches past the end");
        assert_eq!(what(&set(12, u32::MAX)), "the strings reach past the end");
        assert_eq!(what(&set(16, strings as u32)), "the memory reservations do not end");
        assert_eq!(what(&set(strings, 0x7601_6c75)), "a property's name is not printable");
        // The structure: root, its empty name, child, "child\0", property, length, name, value, ends.
        assert_eq!(what(&set(structure, END)), "no such token can be here");
        assert_eq!(what(&set(structure, NOP)), "no such token can be here");
        assert_eq!(what(&set(structure + 4, 0x6100_0000)), "the root alone has no name");
        assert_eq!(what(&set(structure + 12, 0)), "the root alone has no name");
        assert_eq!(what(&set(structure + 12, 0x1b00_0000)), "a node's name is not printable");
        assert_eq!(what(&set(structure + 24, 1000)), "a property's value reaches past the end");
        assert_eq!(what(&set(structure + 28, 6)), "a property's name reaches past the end");
        assert_eq!(what(&set(structure + 36, END)), "no such token can be here");
        assert_eq!(what(&set(structure + 40, PROPERTY)), "no such token can be here");
        assert_eq!(what(&set(structure + 44, NOP)), REACHES_PAST);
    }
}
