//! Compiled kernels in files, so that the next process need not compile them.
//!
//! A file has the name of a hash of its source, and holds the source as well: two sources of one hash are told apart,
//! and so is a file that another program has written. What cannot be read or written is compiled, without a word.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const MAGIC: &[u8] = b"tch-losses kernel 1\n";

/// What machine code is made of.
pub(super) struct Origin<'a> {
    pub(super) source: &'a str,
    pub(super) capability: i32,
    /// The version of NVRTC.
    pub(super) compiler: (i32, i32),
}

/// A folder of compiled kernels, or none.
pub(super) struct Store(Option<PathBuf>);

impl Store {
    /// That of this user: the folder in `TCH_LOSSES_KERNEL_CACHE`, or none where the variable is empty, or
    /// `tch-losses` in the user's folder for caches.
    pub(super) fn of_user() -> &'static Store {
        static STORE: OnceLock<Store> = OnceLock::new();
        STORE.get_or_init(|| {
            let variable = |name| std::env::var_os(name);
            Store(folder(variable("TCH_LOSSES_KERNEL_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME")))
        })
    }

    /// The machine code of a source: that of the file, or what `compile` makes, which is then kept.
    pub(super) fn code(
        &self,
        origin: &Origin,
        compile: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Vec<u8>, String> {
        let Some(folder) = &self.0 else { return compile() };
        let identity = origin.identity();
        let path = folder.join(format!("{:016x}.kernel", hash(&identity)));
        if let Some(code) = fs::read(&path).ok().and_then(|bytes| unpacked(&bytes, &identity)) {
            return Ok(code);
        }
        let code = compile()?;
        let _ = write(folder, &path, &packed(&identity, &code));
        Ok(code)
    }

    /// Forgets the code of a source, which a driver would not load.
    pub(super) fn remove(&self, origin: &Origin) {
        if let Some(folder) = &self.0 {
            let _ = fs::remove_file(folder.join(format!("{:016x}.kernel", hash(&origin.identity()))));
        }
    }
}

impl Origin<'_> {
    fn identity(&self) -> Vec<u8> {
        let Origin { source, capability, compiler: (major, minor) } = self;
        format!("NVRTC {major}.{minor}, sm_{capability}\n{source}").into_bytes()
    }
}

/// The folder, given the values of the three variables.
fn folder(
    own: Option<std::ffi::OsString>,
    caches: Option<std::ffi::OsString>,
    home: Option<std::ffi::OsString>,
) -> Option<PathBuf> {
    if let Some(own) = own {
        return (!own.is_empty()).then(|| PathBuf::from(own));
    }
    let caches = caches.map(PathBuf::from).filter(|caches| caches.is_absolute());
    Some(caches.or_else(|| Some(PathBuf::from(home?).join(".cache")))?.join("tch-losses"))
}

/// Writes a file that other processes see whole or not at all.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    fs::create_dir_all(folder)?;
    let own = folder.join(format!("{}.{}.part", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let written = fs::File::create_new(&own).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| fs::rename(&own, path)).inspect_err(|_| {
        let _ = fs::remove_file(&own);
    })
}

/// FNV-1a, which is the same in every build.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The text of a file: the length of the identity, the identity, the code, and a hash of all that.
fn packed(identity: &[u8], code: &[u8]) -> Vec<u8> {
    let mut bytes = [MAGIC, &(identity.len() as u64).to_le_bytes(), identity, code].concat();
    bytes.extend(hash(&bytes).to_le_bytes());
    bytes
}

/// The code in a file, where it is whole and that of this identity.
fn unpacked(bytes: &[u8], identity: &[u8]) -> Option<Vec<u8>> {
    let (content, check) = bytes.split_last_chunk::<8>()?;
    if u64::from_le_bytes(*check) != hash(content) {
        return None;
    }
    let (length, rest) = content.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*length) != identity.len() as u64 {
        return None;
    }
    Some(rest.strip_prefix(identity)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { source: "kernel", capability: 90, compiler: (13, 0) };

    fn files(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect()
    }

    fn never() -> Result<Vec<u8>, String> {
        panic!("compiled again")
    }

    #[test]
    fn a_kernel_is_compiled_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store(Some(folder.path().join("new")));
        assert_eq!(store.code(&ORIGIN, || Ok(vec![1, 2])), Ok(vec![1, 2]));
        assert_eq!(store.code(&ORIGIN, never), Ok(vec![1, 2]));
        for other in [
            Origin { source: "another", ..ORIGIN },
            Origin { capability: 80, ..ORIGIN },
            Origin { compiler: (13, 1), ..ORIGIN },
        ] {
            assert_eq!(store.code(&other, || Ok(vec![3])), Ok(vec![3]));
        }
        store.remove(&ORIGIN);
        assert_eq!(store.code(&ORIGIN, || Ok(vec![4])), Ok(vec![4]));
        let error = Origin { source: "wrong", ..ORIGIN };
        assert_eq!(store.code(&error, || Err("log".into())), Err("log".into()));
        assert_eq!(store.code(&error, || Ok(vec![5])), Ok(vec![5]), "a failure is not kept");
    }

    #[test]
    fn a_damaged_file_is_compiled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store(Some(folder.path().to_owned()));
        store.code(&ORIGIN, || Ok(vec![7; 100])).unwrap();
        let file = files(folder.path()).remove(0);
        let whole = fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() - 20] ^= 1;
        let of_another = packed(&Origin { source: "other!", ..ORIGIN }.identity(), &[9]);
        for damaged in [&[][..], b"short", &whole[..whole.len() / 2], &whole[..whole.len() - 1], &flipped, &of_another]
        {
            fs::write(&file, damaged).unwrap();
            assert_eq!(store.code(&ORIGIN, || Ok(vec![8])), Ok(vec![8]));
            assert_eq!(store.code(&ORIGIN, never), Ok(vec![8]));
        }
    }

    #[test]
    fn several_may_write_one_kernel() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = Store(Some(folder.path().to_owned()));
                    assert_eq!(store.code(&ORIGIN, || Ok(vec![6; 10_000])), Ok(vec![6; 10_000]));
                });
            }
        });
        assert_eq!(files(folder.path()).len(), 1, "no part is left");
    }

    #[test]
    fn without_a_folder_it_compiles_always() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "no folder").unwrap();
        for store in [Store(None), Store(Some(file.join("below")))] {
            assert_eq!(store.code(&ORIGIN, || Ok(vec![1])), Ok(vec![1]));
            assert_eq!(store.code(&ORIGIN, || Ok(vec![2])), Ok(vec![2]));
        }
    }

    #[test]
    fn the_folder_is_that_of_the_variables() {
        let of = |own: Option<&str>, caches: Option<&str>, home: Option<&str>| {
            folder(own.map(Into::into), caches.map(Into::into), home.map(Into::into))
        };
        assert_eq!(of(Some("/own"), Some("/caches"), None), Some("/own".into()));
        assert_eq!(of(Some(""), Some("/caches"), None), None);
        assert_eq!(of(None, Some("/caches"), Some("/home")), Some("/caches/tch-losses".into()));
        assert_eq!(of(None, Some("relative"), Some("/home")), Some("/home/.cache/tch-losses".into()));
        assert_eq!(of(None, None, None), None);
    }
}
