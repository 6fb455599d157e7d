//! Losses over many processes, in processes of their own: this program starts itself, once for each rank. A rank that
//! finds something wrong ends with an error, and so fails the test that started it.
//!
//! What is compared is one process with the whole batch, which every rank computes as well, without its group.

#![cfg(target_os = "linux")]

mod common;
#[path = "distributed/equality.rs"]
mod equality;
#[path = "distributed/failures.rs"]
mod failures;
#[path = "distributed/job.rs"]
mod job;
#[path = "distributed/memory.rs"]
mod memory;
#[path = "distributed/neighbours.rs"]
mod neighbours;
#[path = "distributed/python.rs"]
mod python;
#[path = "distributed/statistics.rs"]
mod statistics;

use job::Job;

/// A rank of a job. The jobs start it.
#[test]
#[ignore = "the other tests start it"]
fn rank() {
    let case = std::env::var("TCH_LOSSES_TEST_CASE").expect("the other tests start this one, with a case");
    tch::set_num_threads(1);
    let known = equality::run(&case)
        || failures::run(&case)
        || memory::run(&case)
        || neighbours::run(&case)
        || python::run(&case)
        || statistics::run(&case);
    assert!(known, "no case {case}");
}

/// Runs a case of `equality` on 2 and on 4 ranks.
fn equal_to_one_process(case: &str) {
    for world in [2, 4] {
        Job::new(case, world).run().all_succeed();
    }
}

#[test]
fn collectives_have_the_numbers_of_all_ranks() {
    equal_to_one_process("collectives");
}

#[test]
fn gradients_follow_their_convention() {
    equal_to_one_process("gradients");
}

#[test]
fn means_are_those_of_one_process() {
    equal_to_one_process("means");
}

#[test]
fn means_over_nothing_are_those_of_one_process() {
    Job::new("nothing", 2).run().all_succeed();
}

#[test]
fn losses_of_pairs_are_those_of_one_process() {
    equal_to_one_process("pairs");
}

#[test]
fn losses_of_own_anchors_add_up_to_those_of_one_process() {
    equal_to_one_process("own-anchors");
}

#[test]
fn clip_is_that_of_one_process() {
    equal_to_one_process("clip");
}

#[test]
fn siglip_is_that_of_one_process() {
    equal_to_one_process("siglip");
}

#[test]
fn barlow_twins_and_vicreg_are_those_of_one_process() {
    equal_to_one_process("redundancy");
}

#[test]
fn cross_entropy_of_spread_classes_is_that_of_one_process() {
    equal_to_one_process("vocabulary");
}

#[test]
fn cross_entropy_of_spread_classes_in_chunks_is_that_of_one_process() {
    equal_to_one_process("vocabulary-chunks");
}

#[test]
fn memory_of_spread_classes_is_that_of_a_chunk_of_the_own_classes() {
    memory::memory_of_spread_classes_is_that_of_a_chunk_of_the_own_classes();
}

#[test]
fn memory_of_neighbours_is_that_of_one_block() {
    memory::memory_of_neighbours_is_that_of_one_block();
}

#[test]
fn shifts_have_the_numbers_of_neighbours() {
    for world in [1, 2, 3, 4] {
        Job::new("shifts", world).run().all_succeed();
    }
}

#[test]
fn siglip_of_neighbours_is_that_of_one_process() {
    for world in [1, 2, 3, 4] {
        Job::new("siglip-neighbours", world).run().all_succeed();
    }
}

#[test]
fn bytes_are_those_that_the_process_writes() {
    equal_to_one_process("bytes");
}

#[test]
fn dino_and_its_centre_are_those_of_one_process() {
    equal_to_one_process("dino");
}

#[test]
fn losses_of_a_whole_batch_are_those_of_one_process() {
    equal_to_one_process("whole");
}

#[test]
fn single_precision_is_that_of_one_process() {
    equal_to_one_process("single");
}

#[test]
fn ranks_that_disagree_all_have_an_error_and_go_on() {
    for world in [2, 4] {
        Job::new("disagree", world).run().all_succeed();
    }
}

/// The one that scripts/memcheck runs under valgrind.
#[test]
fn a_small_job_of_two_ranks() {
    Job::new("small", 2).run().all_succeed();
}

#[test]
fn options_that_differ_are_an_error_on_all() {
    for world in [2, 4] {
        Job::new("options", world).run().all_succeed();
    }
}

#[test]
fn a_refusal_reaches_the_other_ranks() {
    Job::new("refuse", 2).run().all_succeed();
}

#[test]
fn a_group_of_more_ranks_than_there_are_names_the_missing_one() {
    Job::new("few", 3).start_only(2).run().all_succeed();
}

#[test]
fn a_taken_port_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Job::new("taken", 2).port(taken.local_addr().unwrap().port()).run().all_succeed();
}

#[test]
fn ranks_that_count_other_numbers_of_ranks_have_an_error() {
    let ranks = Job::new("counts", 2).run();
    ranks.all_succeed();
    assert!((0..2).any(|rank| ranks.text(rank).contains("seen")), "one of them says what is wrong");
}

#[test]
fn a_rank_that_there_is_already_is_an_error() {
    Job::new("same", 3).run().all_succeed();
}

#[test]
fn ranks_that_try_once_more_meet() {
    Job::new("again", 3).run().all_succeed();
}

#[test]
fn a_killed_rank_is_an_error_on_the_others() {
    for world in [2, 4] {
        let ranks = Job::new("killed", world).run();
        ranks.succeed(0..world - 1);
        assert!(!ranks.succeeded(world - 1), "the last rank kills itself");
    }
}

#[test]
fn rank_0_may_be_the_one_that_is_killed() {
    let ranks = Job::new("killed-0", 4).run();
    ranks.succeed(1..4);
    assert!(!ranks.succeeded(0), "rank 0 kills itself");
}

#[test]
fn a_store_that_does_not_answer_is_an_error_on_the_others() {
    let ranks = Job::new("stopped-0", 3).run();
    ranks.succeed(1..3);
    assert!(!ranks.succeeded(0), "rank 0 is killed in the end");
}

#[test]
fn a_killed_neighbour_is_an_error_on_the_others() {
    for case in ["killed-in-shift", "killed-in-backward"] {
        let ranks = Job::new(case, 4).run();
        ranks.succeed(0..3);
        assert!(!ranks.succeeded(3), "the last rank kills itself");
    }
}

#[test]
fn a_late_neighbour_is_an_error_on_all() {
    Job::new("late-in-shift", 4).run().all_succeed();
}

#[test]
fn a_late_rank_is_an_error_on_all() {
    Job::new("late", 4).run().all_succeed();
}

#[test]
fn a_barrier_names_who_is_missing() {
    Job::new("barrier", 4).run().all_succeed();
}

#[test]
fn python_ranks_belong_to_the_group() {
    python::python_ranks_belong_to_the_group();
}

#[test]
fn losses_are_those_of_python_over_ranks() {
    python::losses_are_those_of_python_over_ranks();
}

#[test]
fn torchrun_starts_ranks() {
    python::torchrun_starts_ranks();
}
