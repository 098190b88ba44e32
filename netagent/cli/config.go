package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// loadConfig sets every flag that the YAML file names and the command line did not. All problems
// are reported, each with file:line. check then sees the settings as a whole; an error of it that
// begins with the name of a setting from the file gets that one's line.
func loadConfig(file string, flags *pflag.FlagSet, check func() error) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	var doc, second yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return check() // an empty file sets nothing
	} else if err != nil {
		return fmt.Errorf("%s:%s", file, lineFirst(err))
	}
	if err := d.Decode(&second); err == nil {
		return fmt.Errorf("%s:%d: a second document: settings are one document", file, second.Line)
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s:%s", file, lineFirst(err))
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: expected `name: value` pairs such as `overlay: vxlan`", file, root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if key, val := root.Content[i], root.Content[i+1]; key.Value == "kind" && val.Value == "KubeProxyConfiguration" {
			return fmt.Errorf("%s:%d: this is a KubeProxyConfiguration: the settings of netagent have the names of flags (conntrack.tcpEstablishedTimeout is conntrack-tcp-timeout-established); docs/operations.md says which of kube-proxy's there are", file, key.Line)
		}
	}
	var errs []error
	seen := map[string]int{} // line of each setting that is taken from the file
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, val := root.Content[i], root.Content[i+1]
		if err := setFlag(flags, seen, key, val); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, key.Line, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	err = check()
	if err != nil {
		if name, _, _ := strings.Cut(err.Error(), ":"); seen[name] > 0 {
			return fmt.Errorf("%s:%d: %w", file, seen[name], err)
		}
	}
	return err
}

func setFlag(flags *pflag.FlagSet, seen map[string]int, key, val *yaml.Node) error {
	f := flags.Lookup(key.Value)
	switch {
	case f == nil && adviceFor(key.Value) != "":
		return fmt.Errorf("key %q: %s", key.Value, adviceFor(key.Value))
	case f == nil || f.Name == "config" || f.Name == "help":
		return fmt.Errorf("unknown key %q%s; accepted: %s", key.Value, didYouMean(flags, key.Value), strings.Join(names(flags), ", "))
	case seen[f.Name] > 0:
		return fmt.Errorf("key %q stands in line %d already", f.Name, seen[f.Name])
	}
	values := []*yaml.Node{val}
	if _, many := f.Value.(pflag.SliceValue); many && val.Kind == yaml.SequenceNode {
		values = val.Content
	}
	for _, v := range values {
		if v.Kind != yaml.ScalarNode {
			return fmt.Errorf("%s: expected one value, not a list or a mapping", key.Value)
		}
	}
	seen[f.Name] = key.Line
	if f.Changed {
		return nil // given on the command line
	}
	for _, v := range values {
		value := v.Value
		if v.Tag == "!!null" && values[0] != val {
			return fmt.Errorf("%s: an empty item", key.Value)
		}
		if v.Tag == "!!null" {
			value = ""
		}
		if err := flags.Set(f.Name, value); err != nil {
			return fmt.Errorf("%s: %q is not a valid %s", key.Value, value, f.Value.Type())
		}
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
