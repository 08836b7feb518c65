//! The report in a browser, through WebDriver: Debian's packages `chromium` and `chromium-driver`.
//!
//! Where they are not installed the test says so and passes, unless `REPORT_NEEDS_BROWSER` is set, as `.ci/run` does.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use super::*;

/// A session of Chromium. It ends with this.
struct Browser {
    driver: Child,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// None where there is none.
    fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        let mut driver = command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let lines = BufReader::new(driver.stdout.take().expect("piped")).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| {
                Some(line.split_once("on port ")?.1.trim_end_matches('.').to_owned())
                    .filter(|_| line.contains("success"))
            })
            .expect("the driver says where it is");
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" },
        });
        let sessions = format!("http://127.0.0.1:{port}/session");
        let session = post(&sessions, &json!({ "capabilities": { "alwaysMatch": capabilities } }));
        let session = format!("{sessions}/{}", session["sessionId"].as_str().expect("a session"));
        Some(Self { driver, session, _profile: profile })
    }

    fn command(&self, name: &str, parameters: Value) -> Value {
        post(&format!("{}/{name}", self.session), &parameters)
    }

    fn open(&self, path: &Path) {
        self.command("url", json!({ "url": format!("file://{}", path.display()) }));
    }

    /// What a script returns.
    fn run(&self, script: &str) -> Value {
        self.command("execute/sync", json!({ "script": script, "args": [] }))
    }

    /// Waits until a script returns true, which charts need after a change.
    fn until(&self, condition: &str) {
        let script = format!(
            "const done = arguments[0]; const started = Date.now();
             const look = () => {{
               let so = false;
               try {{ so = (() => {{ {condition} }})(); }} catch {{ }}
               if (so || Date.now() - started > 10_000) done(so); else requestAnimationFrame(look);
             }};
             look();"
        );
        let so = self.command("execute/async", json!({ "script": script, "args": [] }));
        assert_eq!(so, true, "never came true: {condition}");
    }

    fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.command("goog/cdp/execute", json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics }));
    }

    /// What the page complained about.
    fn complaints(&self) -> Vec<String> {
        let log = self.command("se/log", json!({ "type": "browser" }));
        log.as_array().unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        _ = ureq::delete(&self.session).call();
        _ = self.driver.kill();
        _ = self.driver.wait();
    }
}

fn post(url: &str, body: &Value) -> Value {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer: Value = agent.post(url).send_json(body).unwrap().body_mut().read_json().unwrap();
    let value = answer["value"].take();
    assert!(value["error"].is_null(), "{url}: {value}");
    value
}

fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        assert!(
            env::var_os("REPORT_NEEDS_BROWSER").is_none(),
            "there is no chromedriver: install Debian's packages chromium and chromium-driver"
        );
        eprintln!("not tested: there is no chromedriver here (Debian's packages chromium and chromium-driver)");
    }
    browser
}

/// A page that has everything, where a browser can open it.
fn page(folder: &Path) -> PathBuf {
    let source = sections::sample();
    let path = folder.join("report.html");
    fs::write(&path, html(&source, &sections::all(&source))).unwrap();
    path
}

#[test]
fn the_page_draws_sorts_filters_changes_its_theme_and_fits_a_phone() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    browser.open(&page(folder.path()));

    // Every chart is drawn, and has marks.
    browser.until("return document.querySelectorAll('figure.chart svg[role=img]').length > 0");
    let without_marks = browser.run(
        "return [...document.querySelectorAll('figure.chart')]
           .filter(figure => !figure.querySelector('svg[role=img] :is(circle, path, rect, line)'))
           .map(figure => figure.dataset.chart)",
    );
    assert_eq!(without_marks, json!([]));
    // Each has its data as a table in the same section.
    let without_table = browser.run(
        "return [...document.querySelectorAll('figure.chart')]
           .filter(figure => !figure.closest('section').querySelector('table.data tbody tr'))
           .map(figure => figure.dataset.chart)",
    );
    assert_eq!(without_table, json!([]));

    // A column is sorted by its numbers, both ways, and says so.
    let sorted = |browser: &Browser| {
        browser.run(
            "const table = document.querySelector('#raw table.data');
             table.closest('details').open = true;
             table.querySelectorAll('thead th button')[1].click();
             return [table.querySelectorAll('thead th')[1].getAttribute('aria-sort'),
                     [...table.querySelectorAll('tbody tr')].map(row => Number(row.cells[1].dataset.value))]",
        )
    };
    for way in [sorted(&browser), sorted(&browser)] {
        let values: Vec<f64> = way[1].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert!(values.len() > 3);
        let in_order = match way[0].as_str() {
            Some("ascending") => values.is_sorted(),
            Some("descending") => values.is_sorted_by(|a, b| a >= b),
            other => panic!("{other:?}"),
        };
        assert!(in_order, "{way}");
    }

    // The theme changes what is seen, and goes round.
    let theme = "return [document.documentElement.dataset.theme ?? 'auto',
                         getComputedStyle(document.documentElement).backgroundColor]";
    let mut seen = Vec::new();
    for _ in 0..3 {
        browser.run("document.querySelector('button#theme').click()");
        seen.push(browser.run(theme));
    }
    assert_eq!(seen.iter().map(|seen| &seen[0]).collect::<Vec<_>>(), ["light", "dark", "auto"]);
    assert_ne!(seen[0][1], seen[1][1]);

    // The filter leaves rows of that name only, and says how many.
    browser.run(
        "const filter = document.querySelector('input#filter');
         filter.value = 'send_message'; filter.dispatchEvent(new Event('input', { bubbles: true }))",
    );
    browser.until("return /^\\d+ of \\d+/.test(document.querySelector('#filter-count').textContent)");
    let others = browser.run(
        "return [...document.querySelectorAll('table.data tbody tr:not([hidden]) th')]
           .map(header => header.textContent).filter(text => !text.includes('send_message'))",
    );
    assert_eq!(others, json!([]));

    // On a phone nothing is wider than the screen, with everything open.
    browser.resize(360, 740);
    browser.open(&page(folder.path()));
    browser.until("return document.querySelectorAll('figure.chart svg[role=img]').length > 0");
    browser.run("document.querySelectorAll('details').forEach(details => { details.open = true; })");
    assert_eq!(browser.run("return document.documentElement.scrollWidth"), 360);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
