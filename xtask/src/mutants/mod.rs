//! `cargo xtask mutants`: small bugs put into the ownership state machine and the table of roles, to
//! see that the tests notice each; what became of them is in `mutants.toml`.

mod build;
mod list;
mod outcome;
mod points;
mod sources;
mod switch;
mod tool;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, bail};

pub(crate) use list::check;
use list::{File, List, Survivor};
use outcome::{Known, Mutant, Outcome, Store, Versions, keys};
use sources::CRATES;
use trial::Trial;

use crate::workspace;

/// The tests, in the order in which a mutant meets them: those that take an instant, then random
/// sequences and the beginnings of all small worlds. To search the worlds whole takes a minute for
/// each mutant; the other test that is left out is about speed.
const LEVELS: [&[&str]; 2] = [
    &["--skip=tests::random", "--skip=tests::search"],
    &["tests::random", "tests::search", "--skip=every_small_world_is_sound", "--skip=ten_thousand"],
];
/// Both at once.
const ALL: &[&str] = &["--skip=every_small_world_is_sound", "--skip=ten_thousand"];
/// How long both may take of a mutant that is built by itself, in seconds.
const LIMIT: u64 = 120;

/// Arguments of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Files whose mutants are run though they didn't change, by their paths in the tree.
    files: Vec<String>,
    /// Run the mutants of all files.
    #[arg(long)]
    all: bool,
    /// Also run those that can't be built together with the others, which takes a build for each;
    /// without it they count as not caught.
    #[arg(long)]
    one_by_one: bool,
    /// Forget what earlier runs found of the same version.
    #[arg(long)]
    fresh: bool,
    /// Write what is found into mutants.toml; reasons are for you to write.
    #[arg(long)]
    write: bool,
    /// How many at a time; as many as there are processors without it.
    #[arg(long)]
    jobs: Option<usize>,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let root = workspace::root();
    let product = sources::product(&root)?;
    let old = List::read(&root)?;
    let files = chosen(arguments, &product, &old)?;
    let run = Run::new(root, arguments)?;
    let found = if files.is_empty() { Vec::new() } else { run.run(&files, arguments.one_by_one)? };
    let new = merged(&old, &product, &files, &found);
    println!("\n{}", new.total().line());
    let unlisted: Vec<&Survivor> = new.survivors.iter().filter(|it| it.why.is_empty()).collect();
    if !unlisted.is_empty() {
        for survivor in &unlisted {
            println!("\n[[survivor]]\nmutant = {:?}\nwhy = \"\"", survivor.mutant);
        }
        bail!(
            "{} mutants survive without a reason: write tests that catch them, or list them in {} with why",
            unlisted.len(),
            list::NAME
        );
    }
    match new.faults() {
        faults if !faults.is_empty() => bail!("{}", faults.join("\n")),
        _ if arguments.write => new.write(&run.root),
        _ if new == old => Ok(()),
        _ => bail!("{} says something else: cargo xtask mutants --write", list::NAME),
    }
}

/// The files that changed, and those that are asked for.
fn chosen(
    arguments: &Arguments,
    product: &BTreeMap<String, String>,
    list: &List,
) -> Result<Vec<String>> {
    if let Some(unknown) = arguments.files.iter().find(|file| !product.contains_key(*file)) {
        bail!("{unknown} is no product file of {}", CRATES.map(|(_, dir)| dir).join(" or "));
    }
    if arguments.all {
        return Ok(product.keys().cloned().collect());
    }
    let left = list.files.iter().filter(|file| arguments.one_by_one && file.left > 0);
    let left = left.map(|file| file.path.clone()).filter(|path| product.contains_key(path));
    let outdated = list.outdated(product).into_iter().chain(left);
    let files: BTreeSet<String> = outdated.chain(arguments.files.iter().cloned()).collect();
    Ok(files.into_iter().collect())
}

/// The list with what was found of some files. A survivor that wasn't listed has no reason.
fn merged(
    old: &List,
    product: &BTreeMap<String, String>,
    files: &[String],
    found: &[(Mutant, Outcome)],
) -> List {
    let mut new = List::default();
    for (path, tokens) in product {
        let before = old.files.iter().find(|file| file.path == *path);
        if !files.contains(path) {
            new.files.extend(before.cloned());
            new.survivors.extend(old.survivors.iter().filter(|it| it.is_of(path)).cloned());
            continue;
        }
        let here: Vec<_> = found.iter().filter(|(mutant, _)| mutant.file == *path).collect();
        let (path, tokens) = (path.clone(), tokens.clone());
        let mut file = File { path, tokens, ..File::default() };
        let mutants: Vec<Mutant> = here.iter().map(|(mutant, _)| mutant.clone()).collect();
        for ((_, outcome), key) in here.into_iter().zip(keys(&mutants)) {
            file.count(*outcome);
            if *outcome == Outcome::Missed {
                let listed = old.survivors.iter().find(|survivor| survivor.mutant == key);
                let why = listed.map(|survivor| survivor.why.clone()).unwrap_or_default();
                new.survivors.push(Survivor { mutant: key, why });
            }
        }
        new.files.push(file);
    }
    new
}

struct Run {
    root: PathBuf,
    /// The copy that is changed, cargo's target directory for it, and what is known.
    tree: PathBuf,
    build: PathBuf,
    out: PathBuf,
    program: PathBuf,
    jobs: usize,
}

impl Run {
    fn new(root: PathBuf, arguments: &Arguments) -> Result<Self> {
        let work = workspace::target().join("mutation");
        let out = work.join("out");
        if arguments.fresh && out.exists() {
            std::fs::remove_dir_all(&out).with_context(|| format!("remove {}", out.display()))?;
        }
        let jobs = arguments.jobs.or_else(|| thread::available_parallelism().ok().map(usize::from));
        let program = tool::ensure()?;
        let (tree, build) = (work.join("tree"), work.join("build"));
        Ok(Self { root, tree, build, out, program, jobs: jobs.unwrap_or(1) })
    }

    /// What becomes of every mutant of some files.
    fn run(&self, files: &[String], one_by_one: bool) -> Result<Vec<(Mutant, Outcome)>> {
        let store = Store(&self.out);
        let now = Versions {
            files: files
                .iter()
                .map(|file| Ok((file.clone(), sources::content(&self.root, file)?)))
                .collect::<Result<_>>()?,
            tests: sources::tests(&self.root)?,
        };
        let mutants = tool::list(&self.program, &self.root, files)?;
        let mut known = store.load()?;
        known.retain(&now);
        let unknown = |known: &Known| -> Result<Vec<(u32, &Mutant)>> {
            let all = switch::with_numbers(&mutants)?;
            Ok(all.into_iter().filter(|(_, mutant)| known.of(mutant).is_none()).collect())
        };
        let todo = unknown(&known)?;
        println!("{} mutants of {} files, {} to run", mutants.len(), files.len(), todo.len());
        if !todo.is_empty() {
            self.together(&todo, store, &now, &mut known)?;
        }
        let left: Vec<&Mutant> = unknown(&known)?.into_iter().map(|(_, mutant)| mutant).collect();
        if one_by_one && !left.is_empty() {
            println!("{} are built one by one", left.len());
            build::copy(&self.root, &self.tree)?;
            store.begin(&now)?;
            let places = (self.tree.as_path(), self.build.as_path(), self.out.as_path());
            tool::run(&self.program, places, &left, (ALL, LIMIT))?;
            known = store.load()?;
        }
        let outcome = |mutant: Mutant| {
            let outcome = known.of(&mutant).unwrap_or(Outcome::Left);
            (mutant, outcome)
        };
        Ok(mutants.into_iter().map(outcome).collect())
    }

    /// Runs all that can be built together; those that one level misses meet the next.
    fn together(
        &self,
        todo: &[(u32, &Mutant)],
        store: Store<'_>,
        now: &Versions,
        known: &mut Known,
    ) -> Result<()> {
        build::copy(&self.root, &self.tree)?;
        let built = build::switched(&self.root, (&self.tree, &self.build), todo)?;
        let unviable = todo.iter().filter(|(n, _)| built.unviable.contains(n));
        known.take(now, unviable.map(|(_, it)| ((*it).clone(), Outcome::Unviable)).collect());
        store.save(known)?;
        for (package, dir) in CRATES {
            let program = built.programs.get(package).with_context(|| format!("no {package}"))?;
            let is_here =
                |n: &u32, mutant: &Mutant| mutant.file.starts_with(dir) && !built.left.contains(n);
            let mut open: BTreeMap<u32, &Mutant> =
                todo.iter().filter(|(n, mutant)| is_here(n, mutant)).copied().collect();
            for (at, level) in LEVELS.iter().enumerate() {
                let dir = self.tree.join(dir.trim_end_matches("/src/"));
                let trial = Trial { program, dir: &dir, level };
                let numbers: Vec<u32> = open.keys().copied().collect();
                let found = trial.all(&numbers, self.jobs)?;
                let last = at + 1 == LEVELS.len();
                let decided: Vec<(Mutant, Outcome)> = found
                    .into_iter()
                    .filter(|(_, outcome)| last || *outcome != Outcome::Missed)
                    .filter_map(|(n, outcome)| Some((open.remove(&n)?.clone(), outcome)))
                    .collect();
                println!("{package}, level {}: {} of {}", at + 1, decided.len(), numbers.len());
                known.take(now, decided);
                store.save(known)?;
            }
        }
        Ok(())
    }
}
