// Keeps the GPU board fresh.
"use strict";
window.ds01Refresh(document.getElementById("board"));
