//! A browser that is driven over the WebDriver protocol (W3C), as far as the tests need it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// A driver process with one session. Both end with the value.
#[derive(Debug)]
pub(super) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts `driver` and a headless `browser`.
    pub(super) fn start(driver: &Path, browser: &Path) -> Result<Self> {
        let port = super::daemon::free_port()?;
        let driver = Command::new(driver)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", driver.display()))?;
        let profile = tempfile::tempdir().context("make a browser profile")?;
        let mut this = Self { driver, port, session: String::new(), _profile: profile };
        this.wait_until_ready()?;
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,1000",
            &format!("--user-data-dir={}", this._profile.path().display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": browser, "args": arguments},
        }}});
        let answer = this.call("POST", "/session", Some(&wanted))?;
        let id = answer.get("sessionId").and_then(Value::as_str);
        this.session = format!("/session/{}", id.context("the driver gave no session")?);
        Ok(this)
    }

    /// Opens a page.
    pub(super) fn open(&self, url: &str) -> Result<()> {
        self.call("POST", &format!("{}/url", self.session), Some(&json!({ "url": url }))).map(drop)
    }

    /// What a script returns.
    pub(super) fn script(&self, script: &str) -> Result<Value> {
        let body = json!({"script": script, "args": []});
        self.call("POST", &format!("{}/execute/sync", self.session), Some(&body))
    }

    /// Waits until a script returns true; false after a minute.
    pub(super) fn becomes_true(&self, script: &str) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.script(script)? != Value::Bool(true) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    }

    /// A picture of the page, as PNG in base64.
    pub(super) fn picture(&self) -> Result<String> {
        let answer = self.call("GET", &format!("{}/screenshot", self.session), None)?;
        Ok(answer.as_str().context("a screenshot is a string")?.to_owned())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.driver.try_wait().context("wait for the driver")? {
                bail!("the browser's driver ended with {status}");
            }
            let ready = self.call("GET", "/status", None).ok();
            if ready.is_some_and(|value| value.get("ready") == Some(&Value::Bool(true))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the browser's driver isn't ready after 60 s");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One call; its `value`.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).context("reach the driver")?;
        stream.set_read_timeout(Some(Duration::from_secs(90))).context("set a time limit")?;
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            &stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .context("ask the driver")?;
        let answer = read_body(&stream)?;
        let answer: Value = serde_json::from_slice(&answer).context("the driver's answer")?;
        let value = answer.get("value").cloned().unwrap_or_default();
        match value.get("error").and_then(Value::as_str) {
            Some(error) => bail!("{method} {path}: {error}: {value}"),
            None => Ok(value),
        }
    }
}

fn read_body(stream: &TcpStream) -> Result<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let mut length = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).context("read the driver's answer")?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let mut body = Vec::new();
    match length {
        Some(length) => reader.take(length).read_to_end(&mut body),
        None => reader.read_to_end(&mut body),
    }
    .context("read the driver's answer")?;
    Ok(body)
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The session's end closes the browser; the driver would leave it behind when killed.
        if !self.session.is_empty() {
            drop(self.call("DELETE", &self.session, None));
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
