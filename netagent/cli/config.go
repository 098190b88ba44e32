package cli

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// loadConfig sets every flag that the YAML file names and the command line did not. All problems
// are reported, each with file:line.
func loadConfig(file string, flags *pflag.FlagSet) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s:%s", file, lineFirst(err))
	}
	if len(doc.Content) == 0 {
		return nil // an empty file sets nothing
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: expected `name: value` pairs such as `overlay: vxlan`", file, root.Line)
	}
	var errs []error
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, val := root.Content[i], root.Content[i+1]
		if err := setFlag(flags, seen, key, val); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, key.Line, err))
		}
	}
	return errors.Join(errs...)
}

func setFlag(flags *pflag.FlagSet, seen map[string]int, key, val *yaml.Node) error {
	f := flags.Lookup(key.Value)
	switch {
	case f == nil || f.Name == "config" || f.Name == "help":
		return fmt.Errorf("unknown key %q%s; accepted: %s", key.Value, didYouMean(flags, key.Value), strings.Join(names(flags), ", "))
	case seen[key.Value] > 0:
		return fmt.Errorf("key %q stands in line %d already", key.Value, seen[key.Value])
	case val.Kind != yaml.ScalarNode:
		return fmt.Errorf("%s: expected one value, not a list or a mapping", key.Value)
	}
	seen[key.Value] = key.Line
	if f.Changed {
		return nil // given on the command line
	}
	value := val.Value
	if val.Tag == "!!null" {
		value = ""
	}
	if err := flags.Set(f.Name, value); err != nil {
		return fmt.Errorf("%s: %q is not a valid %s", key.Value, value, f.Value.Type())
	}
	return nil
}

func names(flags *pflag.FlagSet) (out []string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "help" {
			out = append(out, f.Name)
		}
	})
	return out
}

// didYouMean suggests the accepted name nearest to a mistyped one.
func didYouMean(flags *pflag.FlagSet, word string) string {
	best, bestDistance := "", 4
	for _, n := range names(flags) {
		if d := distance(word, n); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range a {
		cur := make([]int, len(b)+1)
		cur[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j+1]+1, cur[j]+1, prev[j]+cost)
		}
		prev = cur
	}
	return prev[len(b)]
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s+)?line (\d+): `)

// lineFirst turns yaml's "yaml: line 3: text" into "3: text".
func lineFirst(err error) string {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		return m[1] + ": " + strings.TrimPrefix(err.Error(), m[0])
	}
	return "1: " + err.Error()
}
