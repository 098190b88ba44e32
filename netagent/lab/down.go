package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// downRounds bounds how often down looks again for processes that were being started while it ended
// the ones it saw. The daemon ends first, so one more round is the rule.
const downRounds = 5

// daemonGrace is how long the daemon may take to end everything it runs.
const daemonGrace = 5 * time.Second

// downAll takes every lab down that left anything.
func downAll(out io.Writer) error {
	names, err := labs()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		fmt.Fprintln(out, "no lab is up")
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, down(name, out))
	}
	return errors.Join(errs...)
}

// down removes every trace of a lab: processes, namespaces with all their links, files. It needs
// neither the daemon nor the lab's folder, and nothing being there is fine.
func down(name string, out io.Writer) error {
	if err := checkName(name); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("lab down needs root: run it with sudo")
	}
	p := paths{name}
	if err := outsideOf(p); err != nil {
		return err
	}
	ended, err := endDaemon(p)
	if err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	n, err := endInhabitants(p)
	ended += n
	errs := []error{err}
	spaces, err := p.namespaces()
	errs = append(errs, err)
	for _, ns := range spaces {
		errs = append(errs, deleteNS(ns))
	}
	_, statErr := os.Lstat(p.dir())
	if err := os.RemoveAll(p.dir()); err != nil {
		errs = append(errs, fmt.Errorf("remove the lab's folder: %w", err))
	}
	_ = os.Remove(stateRoot) // goes with its last lab; not empty: another lab is up
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s could not be removed wholly: %w", name, err)
	}
	if ended == 0 && len(spaces) == 0 && statErr != nil {
		fmt.Fprintf(out, "lab %s is not up: nothing to remove\n", name)
		return nil
	}
	fmt.Fprintf(out, "lab %s is down: %d processes ended, %d network namespaces removed\n", name, ended, len(spaces))
	return nil
}

// endDaemon goes first, since the daemon would start again whatever else is ended.
func endDaemon(p paths) (int, error) {
	found, err := daemons(p)
	if err != nil {
		return 0, err
	}
	if left := endAll(found, daemonGrace); len(left) > 0 {
		return 0, fmt.Errorf("daemon process %d does not end: see /proc/%[1]d/stack for what it waits for", left[0])
	}
	return len(found), nil
}

// endInhabitants ends everything that lives in one of the lab's namespaces, a person's own
// `lab exec` shells included.
func endInhabitants(p paths) (int, error) {
	ids, err := p.namespaceIDs()
	if err != nil {
		return 0, err
	}
	ended := 0
	for range downRounds {
		found, err := inhabitants(ids)
		if err != nil {
			return ended, err
		}
		if len(found) == 0 {
			return ended, nil
		}
		left := endAll(found, programGrace)
		ended += len(found) - len(left)
		if len(left) > 0 {
			return ended, fmt.Errorf("processes %v do not end", left)
		}
	}
	return ended, errors.New("processes keep being started in the lab's namespaces by something other than the lab: stop that first")
}

// namespaceIDs returns the lab's namespaces by identity.
func (p paths) namespaceIDs() (map[nsID]bool, error) {
	spaces, err := p.namespaces()
	ids := map[nsID]bool{}
	for _, ns := range spaces {
		if id, ok := nsIDOf(nsPath(ns)); ok {
			ids[id] = true
		}
	}
	return ids, err
}

// outsideOf refuses to work from inside the lab, where down would end its own shell half-way.
func outsideOf(p paths) error {
	ids, err := p.namespaceIDs()
	if err != nil {
		return err
	}
	if here, ok := nsIDOf("/proc/thread-self/ns/net"); ok && ids[here] {
		return fmt.Errorf("lab %s: this shell is inside the lab: leave it first", p.name)
	}
	return nil
}

// lastLines returns the end of a log file, for messages about what went wrong.
func lastLines(path string, n int) []string {
	const tail = 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end > tail {
		_, _ = f.Seek(-tail, io.SeekEnd)
	} else {
		_, _ = f.Seek(0, io.SeekStart)
	}
	data, _ := io.ReadAll(f)
	text := strings.TrimSpace(string(data))
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}
