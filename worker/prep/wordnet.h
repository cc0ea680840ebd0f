// WordNet's glosses as a chat data set: the data of the quickstart.
#ifndef SWITCHYARD_WORKER_PREP_WORDNET_H_
#define SWITCHYARD_WORKER_PREP_WORDNET_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

struct WordnetOptions {
  std::string input;   // folder with data.noun, data.verb, data.adj, data.adv (wordnet-base)
  std::string output;  // folder for train.jsonl and validation.jsonl
  int64_t limit = 0;   // rows of train.jsonl; 0: all
  uint64_t seed = 42;
};

struct WordnetResult {
  int64_t train_rows = 0;
  int64_t validation_rows = 0;
};

// One row per synset: user "Define <first word> (<part of speech>).", assistant "<gloss>". Rows are
// shuffled by the seed; a word's glosses are all in one of the two files, about one word in a
// hundred in validation.jsonl (at most 1000 rows). Errors: as the file system; InvalidArgument: a
// line that is not WordNet's.
absl::StatusOr<WordnetResult> WriteWordnet(const WordnetOptions& options);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_WORDNET_H_
