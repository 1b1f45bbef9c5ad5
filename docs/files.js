// Browsers give a page that is opened as a file no worker to search with: such a page goes without the search.
if (location.protocol === "file:")
  document.querySelectorAll(".md-search, .md-header [for=__search]").forEach(part => (part.style.display = "none"))
