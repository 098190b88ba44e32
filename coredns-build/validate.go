package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/parse"
)

// problem is one mistake in a Corefile.
type problem struct {
	file string
	line int // 0 when it is not known
	text string
}

func (p problem) String() string { return fmt.Sprintf("%s:%d: %s", p.file, p.line, p.text) }

// validateFile checks a Corefile ("" = Corefile, "stdin" = standard input) and prints each problem with
// file and line, or that there is none. It returns the exit code: 0 well, 1 with problems.
func validateFile(name string, out io.Writer) int {
	read := func() ([]byte, error) { return os.ReadFile(name) }
	switch name {
	case "":
		name = caddy.DefaultConfigFile
	case "stdin":
		read = func() ([]byte, error) { return io.ReadAll(os.Stdin) }
	}
	text, err := read()
	if err != nil {
		fmt.Fprintf(out, "the Corefile cannot be read: %v; name another with -conf FILE\n", err)
		return 1
	}
	log.SetFlags(0) // plugins warn through it
	problems, blocks := validate(name, text)
	for _, p := range problems {
		fmt.Fprintln(out, p)
	}
	if len(problems) > 0 {
		fmt.Fprintf(out, "%s: %d problems\n", name, len(problems))
		return 1
	}
	what := "server blocks"
	if blocks == 1 {
		what = "server block"
	}
	fmt.Fprintf(out, "%s: no problems in %d %s\n", name, blocks, what)
	return 0
}

// validate runs the set-up of every plugin that a Corefile uses, each for itself, so that one mistake
// does not hide the next. Nothing is started: plugins do that later.
func validate(name string, text []byte) (problems []problem, count int) {
	blocks, err := caddyfile.Parse(name, bytes.NewReader(text), nil)
	if err != nil {
		return []problem{located(err, problem{file: name, line: 1})}, 0
	}
	starts := linesOf(text, blocks)
	for i, b := range blocks {
		head := problem{file: name, line: starts[i]}
		problems = append(problems, checkKeys(b, head)...)
		// Set-up may look at what an earlier one of the block left in its configuration.
		base := caddy.NewTestController("dns", "")
		base.ServerBlockIndex, base.ServerBlockKeys = i, b.Keys
		if len(b.Keys) > 0 {
			base.Key = b.Keys[0]
		}
		for _, word := range order(b) {
			problems = append(problems, checkPlugin(base, word, b.Tokens[word], name)...)
		}
		if tokens := b.Tokens["k8s_external"]; tokens != nil && b.Tokens["kubernetes"] == nil {
			problems = append(problems, problem{fileOf(tokens[0], name), tokens[0].Line, "k8s_external: there is no kubernetes plugin in this server block to take addresses from; add one"})
		}
	}
	problems = append(problems, checkTwice(blocks, name, starts)...)
	slices.SortStableFunc(problems, func(a, b problem) int {
		if c := strings.Compare(a.file, b.file); c != 0 {
			return c
		}
		return a.line - b.line
	})
	return slices.Compact(problems), len(blocks)
}

// order returns the words of a block in the order in which they are set up, then those nobody knows.
func order(b caddyfile.ServerBlock) (out []string) {
	for _, d := range directives {
		if b.Tokens[d] != nil {
			out = append(out, d)
		}
	}
	var unknown []string
	for d := range b.Tokens {
		if !slices.Contains(directives, d) {
			unknown = append(unknown, d)
		}
	}
	slices.Sort(unknown)
	return append(out, unknown...)
}

// maxProblems is how many mistakes of one plugin are looked for.
const maxProblems = 100

// checkPlugin sets a plugin up. After a mistake, it tries again without the line of it.
func checkPlugin(base *caddy.Controller, word string, tokens []caddyfile.Token, name string) (out []problem) {
	at := problem{file: fileOf(tokens[0], name), line: tokens[0].Line}
	setup, err := caddy.DirectiveAction("dns", word)
	if err != nil {
		at.text = fmt.Sprintf("%s: this program has no such plugin", word)
		if !slices.Contains(directives, word) {
			at.text = fmt.Sprintf("%s: there is no such plugin", word)
		}
		return []problem{at}
	}
	try := func(tokens []caddyfile.Token) error {
		c := *base
		c.Dispenser = caddyfile.NewDispenserTokens(name, slices.Clone(tokens))
		c.OncePerServerBlock = func(f func() error) error { return f() }
		return protect(func() error { return setup(&c) })
	}
	for len(out) < maxProblems {
		err := try(tokens)
		if err == nil {
			return out
		}
		p := located(err, at)
		if !place.MatchString(err.Error()) {
			p.line = guilty(tokens, err, at.line, try)
		}
		out = append(out, p)
		fewer, ok := without(tokens, p.line)
		if !ok {
			return out
		}
		tokens = fewer
	}
	return out
}

// guilty returns the line without which an error that names none does not come, else the given one.
func guilty(tokens []caddyfile.Token, err error, line int, try func([]caddyfile.Token) error) int {
	for _, t := range tokens {
		if fewer, ok := without(tokens, t.Line); ok {
			if other := try(fewer); other == nil || other.Error() != err.Error() {
				return t.Line
			}
		}
	}
	return line
}

// protect turns a panic of a plugin's set-up into an error: the rest of the file still gets checked.
func protect(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it panics: %v", r)
		}
	}()
	return f()
}

// without returns the tokens but for those on a line, unless these open or close a block.
func without(tokens []caddyfile.Token, line int) ([]caddyfile.Token, bool) {
	var out []caddyfile.Token
	for i, t := range tokens {
		switch {
		case t.Line != line:
			out = append(out, t)
		case i == 0 || t.Text == "{" || t.Text == "}":
			return nil, false
		}
	}
	return out, len(out) < len(tokens)
}

func fileOf(t caddyfile.Token, name string) string {
	if t.File != "" {
		return t.File
	}
	return name
}

// place is how the Corefile's parser, and ours, begin what they say: "file:line - Error during parsing: ".
var place = regexp.MustCompile(`(\S+):(\d+)(?: - Error during parsing)?: `)

// located finds the file and line that an error names; those of at stand in.
func located(err error, at problem) problem {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if m := place.FindStringSubmatchIndex(text); m != nil {
		if line, aerr := strconv.Atoi(text[m[4]:m[5]]); aerr == nil {
			return problem{text[m[2]:m[3]], line, text[:m[0]] + text[m[1]:]}
		}
	}
	at.text = text
	return at
}

// checkKeys checks the names in front of a server block.
func checkKeys(b caddyfile.ServerBlock, at problem) (out []problem) {
	for _, k := range b.Keys {
		_, rest := parse.Transport(k)
		_, port, err := plugin.SplitHostPort(rest)
		if n, perr := strconv.Atoi(port); err == nil && perr == nil && n > 65535 {
			err = fmt.Errorf("there is no port %d", n)
		}
		if err != nil {
			at.text = fmt.Sprintf("server block %q: %v; want a zone, and :PORT behind it if need be", k, err)
			out = append(out, at)
		}
	}
	return out
}

// checkTwice finds zones that two server blocks serve on one address, where no view tells them apart.
func checkTwice(blocks []caddyfile.ServerBlock, name string, starts []int) (out []problem) {
	first := map[string]int{}
	for i, b := range blocks {
		if b.Tokens["view"] != nil {
			continue
		}
		var bind []string
		for _, t := range b.Tokens["bind"] {
			bind = append(bind, t.Text)
		}
		for _, k := range b.Keys {
			transport, rest := parse.Transport(k)
			hosts, port, err := plugin.SplitHostPort(rest)
			if err != nil {
				continue
			}
			if port == "" {
				port = dnsserver.Port
			}
			for _, h := range hosts {
				at := strings.Join(append([]string{transport, plugin.Name(h).Normalize(), port}, bind...), " ")
				if before, taken := first[at]; taken {
					out = append(out, problem{name, starts[i], fmt.Sprintf("server block %q: the one at line %d serves this already; put both together, bind them to different addresses, or tell them apart by view", k, before)})
					continue
				}
				first[at] = starts[i]
			}
		}
	}
	return out
}

// linesOf returns the line that each server block begins at: the next one outside of braces with its
// first name. A block that is not in the text, but imported, gets the line of the one before it.
func linesOf(text []byte, blocks []caddyfile.ServerBlock) []int {
	out, next, depth, last := make([]int, len(blocks)), 0, 0, 1
	for i, line := range strings.Split(string(text), "\n") {
		code, _, _ := strings.Cut(line, "#")
		words := strings.FieldsFunc(code, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' || r == '\r' })
		for at := next; depth == 0 && at < len(blocks); at++ {
			if slices.Contains(words, blocks[at].Keys[0]) {
				for ; next < at; next++ {
					out[next] = last
				}
				last, out[at], next = i+1, i+1, at+1
				break
			}
		}
		for _, w := range words {
			switch {
			case strings.HasSuffix(w, "{"):
				depth++
			case w == "}":
				depth--
			}
		}
	}
	for ; next < len(blocks); next++ {
		out[next] = last
	}
	return out
}
