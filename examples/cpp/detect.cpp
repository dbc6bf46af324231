// Run a bundle of `siamdetr export` with ONNX Runtime, from its manifest.json alone.
// Numbers in comments are the entries of the manifest's `preparing_images`.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using Json = nlohmann::ordered_json;

struct Size {
  int64_t height, width;
};

// An upright 8-bit RGB picture from a file.
cv::Mat read_picture(const std::string& path) {
  // OpenCV itself turns the picture (1_upright), repeats grey and drops transparency (2_colour).
  cv::Mat picture = cv::imread(path, cv::IMREAD_COLOR | cv::IMREAD_ANYDEPTH);
  if (picture.empty()) throw std::runtime_error("no readable picture");
  if (picture.depth() == CV_16U) {  // 2_colour: the upper 8 of as many bits as the largest value needs
    double largest;
    cv::minMaxLoc(picture.reshape(1), nullptr, &largest);
    int dropped = 0;
    while (static_cast<int>(largest) >> (8 + dropped)) dropped += 2;
    const double step = 1 << dropped;
    picture.convertTo(picture, CV_8U, 1 / step, 0.5 / step - 0.5);  // convertTo rounds; the offset makes it round down
  }
  if (picture.depth() != CV_8U) throw std::runtime_error("expected integer pixels of 8 or 16 bits");
  cv::cvtColor(picture, picture, cv::COLOR_BGR2RGB);
  return picture;
}

// 3_size
Size resized_size(const Json& spec, Size picture) {
  const auto [height, width] = picture;
  const auto rounded = [](double side) { return std::max<int64_t>(1, std::llrint(side)); };  // halves to the even number
  if (spec["mode"] == "fixed") return {spec["size"][0], spec["size"][1]};
  if (spec["mode"] == "letterbox") {
    const double scale = std::min(spec["size"][0].get<double>() / height, spec["size"][1].get<double>() / width);
    return {rounded(height * scale), rounded(width * scale)};
  }
  const double shorter = std::min(height, width), longer = std::max(height, width);
  int64_t side = spec["size"];
  if (const Json& most = spec["max_size"]; !most.is_null() && longer / shorter * side > most.get<double>()) {
    side = rounded(most.get<double>() * shorter / longer);
  }
  const int64_t other = std::max<int64_t>(1, std::floor(side * longer / shorter));
  return height <= width ? Size{side, other} : Size{other, side};
}

// The weights of one new pixel for the old ones from `first` on.
struct Weights {
  int first;
  std::vector<double> values;
};

// 4_filter: a triangle around each new pixel's centre, of sum 1.
std::vector<Weights> triangles(int old_length, int length) {
  const double scale = static_cast<double>(old_length) / length, radius = std::max(1.0, scale);
  std::vector<Weights> all(length);
  for (int i = 0; i < length; ++i) {
    const double centre = (i + 0.5) * scale;
    auto& [first, values] = all[i];
    first = std::max(0, static_cast<int>(std::floor(centre - radius)));
    const int end = std::min(old_length, static_cast<int>(std::ceil(centre + radius)));
    for (int k = first; k < end; ++k) values.push_back(std::max(0.0, 1 - std::abs(k + 0.5 - centre) / radius));
    const double total = std::accumulate(values.begin(), values.end(), 0.0);
    for (double& value : values) value /= total;
  }
  return all;
}

cv::Mat resize_rows(const cv::Mat& image, int length) {
  if (image.cols == length) return image;
  const auto weights = triangles(image.cols, length);
  cv::Mat resized(image.rows, length, CV_8UC3);
  for (int y = 0; y < image.rows; ++y) {
    const auto* from = image.ptr<cv::Vec3b>(y);
    auto* to = resized.ptr<cv::Vec3b>(y);
    for (int x = 0; x < length; ++x) {
      const auto& [first, values] = weights[x];
      double sum[3] = {0.5, 0.5, 0.5};  // rounded to 8 bits, halves up
      for (size_t k = 0; k < values.size(); ++k) {
        for (int c = 0; c < 3; ++c) sum[c] += values[k] * from[first + k][c];
      }
      for (int c = 0; c < 3; ++c) to[x][c] = static_cast<uint8_t>(sum[c]);
    }
  }
  return resized;
}

cv::Mat resize(const cv::Mat& image, Size size) {  // first the width, then the height
  const cv::Mat wide = resize_rows(image, static_cast<int>(size.width));
  return resize_rows(wide.t(), static_cast<int>(size.height)).t();
}

Json read_manifest(const std::filesystem::path& file) {
  std::ifstream stream(file);
  if (!stream) throw std::runtime_error("no manifest.json; expected a bundle of `siamdetr export`");
  return Json::parse(stream);
}

class Detector {
 public:
  explicit Detector(const std::filesystem::path& bundle)
      : manifest_(read_manifest(bundle / "manifest.json")),
        session_(environment_, (bundle / manifest_["files"]["model"].get<std::string>()).c_str(), {}) {}

  // [{"label", "name", "score", "box": [x0, y0, x1, y1]}] in pixels of the picture, best first.
  Json detect(const cv::Mat& picture) {
    const Json& spec = manifest_["preprocessing"];
    cv::Mat image = resize(picture, resized_size(spec, {picture.rows, picture.cols}));
    const std::vector<int64_t> original{picture.rows, picture.cols}, valid{image.rows, image.cols};
    if (spec["mode"] == "letterbox") {  // 5_padding
      const int below = spec["size"][0].get<int>() - image.rows, right = spec["size"][1].get<int>() - image.cols;
      cv::copyMakeBorder(image, image, 0, below, 0, right, cv::BORDER_CONSTANT, 0);
    }
    return read(run(image, original, valid), picture.cols, picture.rows);
  }

 private:
  std::vector<Ort::Value> run(const cv::Mat& image, std::vector<int64_t> original, std::vector<int64_t> valid) {
    const size_t area = image.total();
    std::vector<uint8_t> values(3 * area);
    for (int c = 0; c < 3; ++c) {  // 7_layout
      cv::extractChannel(image, cv::Mat(image.size(), CV_8U, values.data() + c * area), c);
    }
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const std::vector<int64_t> shape{1, 3, image.rows, image.cols}, pair{1, 2};
    std::vector<const char*> names{"images", "original_sizes"};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor(memory, values.data(), values.size(), shape.data(), shape.size()));
    inputs.push_back(Ort::Value::CreateTensor(memory, original.data(), 2, pair.data(), 2));
    if (manifest_["inputs"].contains("valid_sizes")) {
      names.push_back("valid_sizes");
      inputs.push_back(Ort::Value::CreateTensor(memory, valid.data(), 2, pair.data(), 2));
    }
    const char* outputs[] = {"boxes", "scores", "labels"};
    return session_.Run({}, names.data(), inputs.data(), inputs.size(), outputs, std::size(outputs));
  }

  // The manifest's `reading_detections`.
  Json read(const std::vector<Ort::Value>& outputs, float width, float height) {
    const auto* boxes = outputs[0].GetTensorData<float>();
    const auto* scores = outputs[1].GetTensorData<float>();
    const auto* labels = outputs[2].GetTensorData<int64_t>();
    const size_t count = outputs[1].GetTensorTypeAndShapeInfo().GetElementCount();
    const auto finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(scores, scores + count, finite) || !std::all_of(boxes, boxes + 4 * count, finite)) {
      throw std::runtime_error("a score or box is no finite number: the model or the runtime is at fault");
    }
    const auto threshold = manifest_["threshold"].get<float>();
    std::vector<size_t> kept;
    for (size_t i = 0; i < count; ++i) {
      if (scores[i] >= threshold) kept.push_back(i);
    }
    std::stable_sort(kept.begin(), kept.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    Json found = Json::array();
    for (const size_t i : kept) {
      const float* box = boxes + 4 * i;
      found.push_back({{"label", labels[i]},
                       {"name", manifest_["class_names"][labels[i]]},
                       {"score", scores[i]},
                       {"box",
                        {std::clamp(box[0], 0.f, width), std::clamp(box[1], 0.f, height),
                         std::clamp(box[2], 0.f, width), std::clamp(box[3], 0.f, height)}}});
    }
    return found;
  }

  Json manifest_;
  Ort::Env environment_;
  Ort::Session session_;
};

int main(int count, char** arguments) try {
  if (count < 3) {
    std::cerr << "usage: detect BUNDLE PICTURE...\n";
    return 2;
  }
  Detector detector(arguments[1]);
  bool failed = false;
  for (int i = 2; i < count; ++i) {
    Json line{{"file", arguments[i]}};
    try {
      line["detections"] = detector.detect(read_picture(arguments[i]));
    } catch (const std::exception& error) {  // one bad picture does not end the list
      line["error"] = error.what();
      failed = true;
    }
    std::cout << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }
  return failed;
} catch (const std::exception& error) {
  std::cerr << arguments[1] << ": " << error.what() << '\n';
  return 1;
}
