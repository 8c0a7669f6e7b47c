// Texts of the page in English and Chinese; the language of the browser decides.

const TEXTS = {
  en: {
    drop: "Drop an image here, paste it, or click to choose one",
    limits: "up to {mb} MB and {mp} megapixels; the image is sent to this server only",
    about: "{models} · {classes} classes",
    threshold: "Threshold",
    names: "names",
    download: "Download",
    picture: "Picture",
    list: "Detections",
    class: "Class",
    score: "Score",
    box: "Box (x0, y0, x1, y1)",
    legend: "Solid boxes are found by both models, dashed boxes by this one only (same class, IoU of at least 0.5).",
    working: "Looking for objects…",
    none: "no detections at this threshold",
    time: "{ms} ms",
    unseen: "This browser cannot show the image, so boxes are drawn on an empty picture.",
    offline: "The server cannot be reached.",
    refused: "The server refused the image: {error}",
  },
  zh: {
    drop: "将图片拖到此处、粘贴，或点击选择",
    limits: "不超过 {mb} MB、{mp} 百万像素；图片只发送到本服务器",
    about: "{models} · {classes} 个类别",
    threshold: "阈值",
    names: "名称",
    download: "下载",
    picture: "图片",
    list: "检测结果",
    class: "类别",
    score: "得分",
    box: "框 (x0, y0, x1, y1)",
    legend: "实线框：两个模型都检测到；虚线框：只有该模型检测到（类别相同且 IoU 不低于 0.5）。",
    working: "正在检测…",
    none: "在此阈值下没有检测结果",
    time: "{ms} 毫秒",
    unseen: "浏览器无法显示该图片，因此框画在空白图上。",
    offline: "无法连接服务器。",
    refused: "服务器拒绝了该图片：{error}",
  },
};

const language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";

/** Return a text with its values filled in. */
export function text(name, values = {}) {
  return TEXTS[language][name].replace(/{(\w+)}/g, (_, key) => values[key]);
}

/** Write the texts of all elements that have a data-text attribute. */
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = text(element.dataset.text);
  }
}
