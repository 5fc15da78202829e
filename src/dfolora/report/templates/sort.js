// A title sorts the rows of each group by its column: down, then up. Holes stay below.
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, place) => {
    const button = document.createElement("button");
    button.append(...title.childNodes);
    title.append(button);
    const key = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
    button.addEventListener("click", () => {
      const sign = title.getAttribute("aria-sort") === "descending" ? 1 : -1;
      titles.forEach((each) => each.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("heading"));
        rows.sort((one, other) => {
          const [a, b] = [key(one), key(other)];
          if (a === "" || b === "") return (a === "") - (b === "");
          return sign * (Number(a) - Number(b) || a.localeCompare(b, "en"));
        });
        body.append(...rows);
      }
    });
  });
}
