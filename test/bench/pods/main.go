// Command pods measures pod networks side by side: what a pod on one node gets through to a pod on
// another with each backend of our agent, with the same set up by hand, and with flannel. It prints Markdown.
//
// Every subject has two nodes and two pods of its own, network namespaces on one machine, and all are
// measured in turn, again and again, so that what else the machine does meets all alike. The wire between
// nodes is a veth pair, which carries packets of 64 KB whole, as no network card does: flags switch that off.
//
//	go run ./test/bench/pods --subjects 'udp|vxlan' --rounds 5
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// options are the flags.
type options struct {
	netagent, flannel string
	wireguard         string // the program that serves a device of that kind where the kernel has none
	subjects          *regexp.Regexp
	measures          *regexp.Regexp
	rounds            int
	length            time.Duration
	underlay          int
	offUDP, offTCP    bool
}

func main() {
	o, err := parse(os.Args[1:])
	if err == nil {
		err = compare(o)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("pods", flag.ContinueOnError)
	which := f.String("subjects", "", "regular expression of what to measure: "+strings.Join(names(), ", "))
	what := f.String("measures", "", "regular expression of measures: "+strings.Join(measureNames(), ", "))
	f.StringVar(&o.netagent, "netagent", "bin/netagent", "our agent")
	f.StringVar(&o.flannel, "flannel", "", "the peer (default: built from its module, with cgo)")
	f.IntVar(&o.rounds, "rounds", 5, "times that each figure is taken; the median counts")
	f.DurationVar(&o.length, "length", time.Second, "how long each time")
	f.IntVar(&o.underlay, "underlay", 4, "the family of nodes' and pods' addresses, 4 or 6; with 6 flannel is left out")
	f.BoolVar(&o.offUDP, "split-udp", false, "let the wire split UDP packets that stand for many, as most network cards do in software")
	f.BoolVar(&o.offTCP, "split-tcp", false, "let the wire split TCP packets too")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if o.subjects, err = regexp.Compile(*which); err != nil {
		return nil, fmt.Errorf("subjects: %w", err)
	}
	if o.measures, err = regexp.Compile(*what); err != nil {
		return nil, fmt.Errorf("measures: %w", err)
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("%q is no flag; see --help", f.Arg(0))
	case o.underlay != 4 && o.underlay != 6:
		return nil, fmt.Errorf("underlay: %d: use 4 or 6", o.underlay)
	case o.rounds < 1:
		return nil, fmt.Errorf("rounds: %d: use 1 or more", o.rounds)
	case os.Geteuid() != 0:
		return nil, errors.New("needs root for network namespaces")
	}
	return o, o.programs()
}

// programs finds the programs, and builds the peer when no place was given.
func (o *options) programs() (err error) {
	if o.netagent, err = filepath.Abs(o.netagent); err != nil {
		return err
	}
	if _, err := os.Stat(o.netagent); err != nil {
		return fmt.Errorf("our agent: %w; run `make build` first, in the repository's root", err)
	}
	for _, s := range o.chosen() {
		switch {
		case s.flannel && o.flannel == "":
			o.flannel, err = build("flannel", "1", "-C", "test/oracle", "./flannel")
		case s.kind == "wireguard" && s.hand != nil && o.wireguard == "":
			o.wireguard, err = build("wireguard-go", "0", "golang.zx2c4.com/wireguard")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// build makes a peer's program and returns where it is.
func build(name, cgo string, args ...string) (string, error) {
	file, err := filepath.Abs(filepath.Join("bin", name))
	if err != nil {
		return "", err
	}
	argv := []string{"build"}
	if args[0] == "-C" {
		argv, args = append(argv, args[:2]...), args[2:]
	}
	cmd := exec.Command("go", append(append(argv, "-o", file), args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return file, nil
}

// chosen are the subjects to measure.
func (o *options) chosen() (out []subject) {
	for _, s := range subjects() {
		if o.subjects.MatchString(s.name) && (!s.flannel || o.underlay == 4) {
			out = append(out, s)
		}
	}
	return out
}

// compare measures all subjects in turn and prints the table.
func compare(o *options) error {
	list := o.chosen()
	if len(list) == 0 {
		return fmt.Errorf("subjects: none is like %q: there are %s", o.subjects, strings.Join(names(), ", "))
	}
	t := newTable(list)
	worlds := make([]*world, 0, len(list))
	defer func() {
		for _, w := range worlds {
			w.close()
		}
	}()
	for _, s := range list {
		w, err := newWorld(s, o)
		worlds = append(worlds, w)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	fmt.Println(o.facts())
	for round := range o.rounds {
		for i, w := range worlds {
			for _, m := range measures {
				if !o.measures.MatchString(m.name) {
					continue
				}
				v, err := m.run(w, o.length)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", list[i].name, m.name, err)
				}
				t.add(list[i].name, m.name, v)
				fmt.Fprintf(os.Stderr, "round %d: %s: %s: %.4g %s\n", round+1, list[i].name, m.name, v, m.unit)
			}
		}
	}
	t.print(os.Stdout)
	return nil
}
