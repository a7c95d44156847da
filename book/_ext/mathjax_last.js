/* Loads MathJax when the page has nothing else to do.

Its two megabytes take a third of a second of the main thread, and as one of the page's deferred
scripts it would take them before any control answers. */
addEventListener("load", () => {
  const load = () => {
    for (const place of document.querySelectorAll('script[type="text/x-last"]')) {
      const script = document.createElement("script");
      script.src = place.src;
      place.replaceWith(script);
    }
  };
  const whenIdle = self.requestIdleCallback ?? setTimeout; // Safari has no idle callbacks
  // the laboratory's worker is still starting when its page is loaded
  const wait = DOCUMENTATION_OPTIONS.pagename === "book/laboratory" ? 600 : 0;
  setTimeout(() => whenIdle(load), wait);
});
