//! apt's sources: the one-line `.list` and the deb822 `.sources` format.

use std::fs;
use std::path::Path;

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Archives.
    pub uris: Vec<String>,
    /// Suites.
    pub suites: Vec<String>,
    /// Components.
    pub components: Vec<String>,
    /// The keyring or key that must have signed it, where the entry names one.
    pub signed_by: Option<String>,
}

/// Reads the sources below apt's configuration folder; files that cannot be read are skipped.
pub fn read(folder: &Path) -> Vec<Source> {
    let mut files = vec![folder.join("sources.list")];
    if let Ok(parts) = fs::read_dir(folder.join("sources.list.d")) {
        let mut parts: Vec<_> = parts.flatten().map(|part| part.path()).collect();
        parts.sort();
        files.append(&mut parts);
    }
    let parse = |path: &Path| match path.extension()?.to_str()? {
        "list" => Some(parse_list(&fs::read_to_string(path).ok()?)),
        "sources" => Some(parse_deb822(&fs::read_to_string(path).ok()?)),
        _ => None,
    };
    files.iter().filter_map(|path| parse(path)).flatten().collect()
}

/// Parses the one-line format: `deb [ option=value ... ] uri suite component ...`.
pub fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    rest = rest.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options.split_whitespace().find_map(|option| {
            option.to_ascii_lowercase().starts_with("signed-by=").then(|| option[10..].to_owned())
        });
        rest = after;
    }
    let mut words = rest.split_whitespace().map(String::from);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by,
    })
}

/// Parses the deb822 format: stanzas of fields, whose values may go on in indented lines.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let mut stanzas = vec![Vec::<(String, String)>::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let last = stanzas.last_mut().expect("there is always a stanza");
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = last.last_mut() {
                *value += "\n";
                *value += line.trim();
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    stanzas.iter().filter_map(|stanza| from_stanza(stanza)).collect()
}

fn from_stanza(stanza: &[(String, String)]) -> Option<Source> {
    let field =
        |name: &str| stanza.iter().find(|field| field.0 == name).map(|field| field.1.as_str());
    let words =
        |name| field(name).unwrap_or("").split_whitespace().map(String::from).collect::<Vec<_>>();
    let disabled = field("enabled").is_some_and(|value| {
        matches!(value.to_ascii_lowercase().as_str(), "no" | "false" | "off" | "0")
    });
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by")
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(String::from),
    })
}

/// Whether `uri` can stand in apt's sources without changing what the entry means.
pub fn valid_uri(uri: &str) -> bool {
    let scheme = uri.split(':').next().unwrap_or("");
    let method = !scheme.is_empty()
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-'));
    method
        && scheme != "cdrom"
        && uri.len() > scheme.len() + 1
        && uri
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '[' | ']' | '"' | '\'' | '#' | '\\'))
}

/// The archive that holds `codename` of the distribution `owner` (`debian` or `ubuntu`).
///
/// An entry may also name Debian's releases by their place in its life, such as `stable`.
///
/// Third parties use the same suite names, so an entry that names the distribution's keyring goes first, then one
/// without a key whose archive is named after the distribution, then any other without a key. Entries with a key
/// of their own are not the distribution's. (A wrong choice fails: apt checks the distribution's signature.)
pub fn main_archive(sources: &[Source], codename: &str, owner: &str) -> Option<String> {
    let keyring = format!("{owner}-archive");
    let rank = |source: &Source, uri: &str| match &source.signed_by {
        Some(key) if key.contains(&keyring) => Some(0),
        // Ubuntu's and Debian's installers may put the key itself into the entry.
        Some(key) if key.starts_with("-----BEGIN") && last_segment(uri) == owner => Some(1),
        Some(_) => None,
        None if last_segment(uri) == owner => Some(1),
        None => Some(2),
    };
    let mut best: Option<(u32, &str)> = None;
    for source in sources {
        let named = source.suites.iter().any(|suite| {
            let alias = owner == "debian"
                && matches!(suite.as_str(), "stable" | "oldstable" | "testing" | "unstable");
            suite == codename || alias
        });
        if !named || !source.components.iter().any(|component| component == "main") {
            continue;
        }
        for uri in source.uris.iter().filter(|uri| valid_uri(uri)) {
            if let Some(rank) = rank(source, uri)
                && best.is_none_or(|(least, _)| rank < least)
            {
                best = Some((rank, uri));
            }
        }
    }
    best.map(|(_, uri)| uri.to_owned())
}

/// What follows the last `/` of a URI, or of the name of a mirror list such as `.../mirrors/debian.list`.
fn last_segment(uri: &str) -> &str {
    let last = uri.trim_end_matches('/').rsplit('/').next().unwrap_or("");
    last.strip_suffix(".list").unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# comment
Types: deb deb-src
# inside
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main


Types: deb
URIs: http://key.example/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINB
 -----END PGP PUBLIC KEY BLOCK-----
";

    #[test]
    fn deb822_stanzas_are_read_with_continuations_comments_and_switches() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].uris, ["http://mirror.example/debian"]);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(
            sources[0].signed_by.as_deref(),
            Some("/usr/share/keyrings/debian-archive-keyring.gpg")
        );
        assert!(sources[1].signed_by.as_deref().unwrap().contains("BEGIN PGP"));
        assert_eq!(
            main_archive(&sources, "trixie", "debian").as_deref(),
            Some("http://key.example/debian")
        );
    }

    #[test]
    fn one_line_entries_are_read_with_and_without_options() {
        let text = "# deb http://a main\ndeb-src http://b bookworm main\n\
                    deb [ arch=amd64 signed-by=/k.gpg ] http://c bookworm main contrib # why\n\
                    deb\thttp://d/debian/  bookworm-security  main\ndebug x y\ndeb [broken http://e f g\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
        assert_eq!(sources[0].uris, ["http://c"]);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[1].suites, ["bookworm-security"]);
        assert_eq!(sources[1].signed_by, None);
    }

    #[test]
    fn the_distributions_own_entry_is_chosen_among_third_parties() {
        let text = "deb http://plain.example/mirror bookworm main\n\
                    deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/debian bookworm main\n\
                    deb http://tool.example/linux/debian bookworm stable\n\
                    deb http://security.example/debian-security bookworm-security main\n\
                    deb cdrom:[Debian]/ bookworm main\n";
        let choose = |text: &str| main_archive(&parse_list(text), "bookworm", "debian");
        assert_eq!(choose(text).as_deref(), Some("http://plain.example/mirror"));
        let text = format!("{text}deb http://near.example/debian/ bookworm main\n");
        assert_eq!(choose(&text).as_deref(), Some("http://near.example/debian/"));
        let text = format!(
            "{text}deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://x.example bookworm main\n"
        );
        assert_eq!(choose(&text).as_deref(), Some("http://x.example"));
        assert_eq!(main_archive(&parse_list(&text), "trixie", "debian"), None);
    }

    #[test]
    fn a_release_may_be_named_by_its_place() {
        let sources = parse_list("deb http://a.example/debian stable main\n");
        assert_eq!(
            main_archive(&sources, "trixie", "debian").as_deref(),
            Some("http://a.example/debian")
        );
        assert_eq!(main_archive(&sources, "noble", "ubuntu"), None);
    }

    #[test]
    fn mirror_lists_and_local_archives_are_archives_too() {
        let text = "deb mirror+file:/etc/apt/mirrors/debian.list bookworm main\n";
        let chosen = main_archive(&parse_list(text), "bookworm", "debian");
        assert_eq!(chosen.as_deref(), Some("mirror+file:/etc/apt/mirrors/debian.list"));
        assert!(valid_uri("file:///srv/debian"));
    }

    #[test]
    fn uris_that_would_change_the_entry_are_refused() {
        for bad in [
            "",
            "http",
            "http:",
            "://x",
            "http://a b",
            "http://a\nTrusted: yes",
            "http://[x]",
            "cdrom://x",
        ] {
            assert!(!valid_uri(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_sources_of_a_system_are_found_in_both_places() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("sources.list.d")).unwrap();
        fs::write(root.path().join("sources.list"), "deb http://a bookworm main\n").unwrap();
        fs::write(root.path().join("sources.list.d/b.sources"), DEB822).unwrap();
        fs::write(root.path().join("sources.list.d/c.list.bak"), "deb http://c bookworm main\n")
            .unwrap();
        assert_eq!(read(root.path()).len(), 3);
        assert!(read(&root.path().join("absent")).is_empty());
    }
}
