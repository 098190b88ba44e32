package lab

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// progress prints what has become ready since it was last shown: whole lines only, except that on
// a terminal the line of a number that grows is overwritten.
type progress struct {
	out      io.Writer
	terminal bool
	phase    Phase
	seen     map[string]bool
	counted  string // the last count shown
	open     bool   // the cursor stands behind an unfinished line
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, seen: map[string]bool{}}
	if f, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) line(format string, args ...any) {
	p.end()
	fmt.Fprintf(p.out, "  "+format+"\n", args...)
}

// end finishes an unfinished line.
func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
}

// once prints a line the first time a thing has come true.
func (p *progress) once(now bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if now && !p.seen[text] {
		p.seen[text] = true
		p.line("%s", text)
	}
}

func (p *progress) show(s *Status) {
	if s.Phase != p.phase && s.Phase != PhaseUp && s.Phase != PhaseFailed {
		p.line("%s", s.Phase)
	}
	p.phase = s.Phase
	for _, n := range s.Notes {
		p.once(true, "note: %s", n)
	}
	for _, b := range s.Problems {
		p.once(true, "problem: %s", b)
	}
	for _, n := range s.Nodes {
		p.once(n.Agent.Ready, "node %s: agent ready (%s)", n.Name, join(n.IPs))
		p.once(n.DNS.Ready, "node %s: CoreDNS answers", n.Name)
	}
	count := fmt.Sprintf("pods %d/%d ready", s.PodsReady, s.Pods)
	switch {
	case s.Pods == 0 || s.PodsReady == 0 || count == p.counted:
	case p.terminal:
		fmt.Fprintf(p.out, "\r\033[K  %s", count)
		p.open = true
	default:
		p.line("%s", count)
	}
	p.counted = count
}
